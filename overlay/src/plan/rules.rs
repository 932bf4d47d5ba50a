//! Who may send to this host, which comes before and after all else.

use super::{
    desired::Desired,
    observed::{Host, HostRules},
    op::{HostOp, Op},
};

/// Members are let in before anything is sent to them, and what is shut stays so until nobody can come in that way.
pub(super) struct RulesDiff<'a> {
    rules: Option<HostRules>,
    meanwhile: Option<HostRules>,
    current: Option<&'a HostRules>,
}

impl<'a> RulesDiff<'a> {
    pub(super) fn of(desired: &Desired, host: &'a Host) -> Self {
        let (rules, current) = (desired.host_rules(), host.rules.as_ref());
        let meanwhile = rules.as_ref().map(|rules| match current {
            Some(current) => rules.as_strict_as(current),
            None => rules.clone(),
        });
        Self {
            rules,
            meanwhile,
            current,
        }
    }

    /// Before everything else.
    pub(super) fn first(&self) -> Option<Op> {
        let meanwhile = self.meanwhile.as_ref();
        let rules = meanwhile.filter(|rules| self.current != Some(rules))?;
        Some(Op::Host(HostOp::SetRules(rules.clone())))
    }

    /// After it.
    pub(super) fn last(self) -> Option<Op> {
        match self.rules {
            Some(rules) if self.meanwhile.as_ref() != Some(&rules) => Some(Op::Host(HostOp::SetRules(rules))),
            None if self.current.is_some() => Some(Op::Host(HostOp::DeleteRules)),
            _ => None,
        }
    }
}

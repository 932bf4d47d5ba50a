//! Rules, built from left to right.

use std::{fmt, net::IpAddr};

use super::{
    expr::{Expr, Reg},
    load::Load,
    model::Datum,
};

/// A rule to add: expressions from left to right, as long as they hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rule {
    pub(super) exprs: Vec<Expr>,
    pub(super) comment: Option<String>,
}

impl Rule {
    /// A rule that does nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a step.
    #[must_use]
    pub fn then(mut self, expr: Expr) -> Self {
        self.exprs.push(expr);
        self
    }

    /// Goes on if what `load` reads equals `value`. Uses register 0.
    #[must_use]
    pub fn equal(self, load: Load, value: Datum) -> Self {
        self.then(Expr::Load(load, Reg(0))).then(Expr::Compare {
            reg: Reg(0),
            equal: true,
            value,
        })
    }

    /// Goes on if what `load` reads differs from `value`. Uses register 0.
    #[must_use]
    pub fn differs(self, load: Load, value: Datum) -> Self {
        self.then(Expr::Load(load, Reg(0))).then(Expr::Compare {
            reg: Reg(0),
            equal: false,
            value,
        })
    }

    /// Goes on if the source address is in this prefix. Uses registers 0 to 3.
    #[must_use]
    pub fn from_subnet(self, addr: IpAddr, prefix_len: u8) -> Self {
        let (load, mask, network): (_, IpAddr, IpAddr) = match addr {
            IpAddr::V4(addr) => {
                let mask = u32::MAX
                    .checked_shl(32 - u32::from(prefix_len.min(32)))
                    .unwrap_or(0);
                (
                    Load::Ip4Saddr,
                    IpAddr::V4(mask.into()),
                    IpAddr::V4((u32::from(addr) & mask).into()),
                )
            }
            IpAddr::V6(addr) => {
                let mask = u128::MAX
                    .checked_shl(128 - u32::from(prefix_len.min(128)))
                    .unwrap_or(0);
                (
                    Load::Ip6Saddr,
                    IpAddr::V6(mask.into()),
                    IpAddr::V6((u128::from(addr) & mask).into()),
                )
            }
        };
        self.then(Expr::Version { ipv6: addr.is_ipv6() })
            .then(Expr::Load(load, Reg(0)))
            .then(Expr::Mask {
                reg: Reg(0),
                mask: mask.into(),
            })
            .then(Expr::Compare {
                reg: Reg(0),
                equal: true,
                value: network.into(),
            })
    }

    /// Says why the rule is there; `nft list` shows it.
    #[must_use]
    pub fn comment(mut self, comment: impl Into<String>) -> Self {
        self.comment = Some(comment.into());
        self
    }
}

impl Rule {
    /// Its comment.
    pub fn why(&self) -> Option<&str> {
        self.comment.as_deref()
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, expr) in self.exprs.iter().enumerate() {
            write!(f, "{}{expr}", if i == 0 { "" } else { "; " })?;
        }
        match &self.comment {
            Some(comment) => write!(f, " comment \"{comment}\""),
            None => Ok(()),
        }
    }
}

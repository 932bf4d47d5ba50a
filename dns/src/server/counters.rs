use std::{
    ops::AddAssign,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What a server has done since it was started.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct Counts {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl AddAssign for Counts {
            fn add_assign(&mut self, other: Self) {
                $(self.$name += other.$name;)*
            }
        }

        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: Counter,)*
        }

        impl Counters {
            pub(crate) fn read(&self) -> Counts {
                Counts { $($name: self.$name.0.load(Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Questions that could be read.
    questions,
    /// Of these, answered with records.
    answered,
    /// Of these, answered with "no such name" or "nothing of this type".
    negative,
    /// Of these, passed on to the host's resolvers.
    forwarded,
    /// Of these, refused.
    refused,
    /// Of the forwarded ones, those that nobody answered in time or that were too many.
    forward_failed,
    /// Replies of others that pointed into an overlay network and lost those records.
    rebinding,
    /// Messages that were no questions.
    malformed,
    /// Datagrams not even read, because their sender had sent more than its share.
    dropped,
    /// TCP connections closed because there were too many.
    connections_refused,
}

#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn increment(&self) {
        self.0.fetch_add(1, Relaxed);
    }
}

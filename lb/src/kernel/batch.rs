//! Changes on their way to the kernel.

use weft_netlink::nft::{Nft, NftError, Transaction};

/// An unprivileged sender may send about 400 KiB at once; larger changes are cut between services.
const BATCH_BYTES: usize = 200 * 1024;

/// Changes that are sent together as long as they fit.
pub(super) struct Batch<'a> {
    nft: &'a Nft,
    change: Transaction,
    bytes: usize,
    /// How many bytes so far.
    pub(super) added: usize,
}

impl<'a> Batch<'a> {
    pub(super) fn new(nft: &'a Nft) -> Self {
        Self {
            nft,
            change: Transaction::new(),
            bytes: 0,
            added: 0,
        }
    }

    pub(super) fn add(&mut self, change: Transaction) -> Result<(), NftError> {
        if change.is_empty() {
            return Ok(());
        }
        let bytes = change.encoded_len();
        if self.bytes + bytes > BATCH_BYTES {
            self.flush()?;
        }
        self.change.append(change);
        self.bytes += bytes;
        self.added += bytes;
        Ok(())
    }

    pub(super) fn flush(&mut self) -> Result<(), NftError> {
        self.bytes = 0;
        self.nft.commit(&std::mem::take(&mut self.change))
    }
}

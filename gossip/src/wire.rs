/// The most bytes a frame on a stream may have.
pub(crate) const MAX_FRAME: usize = 8 * 1024 * 1024;

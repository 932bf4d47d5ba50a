//! Where replies go: hickory's [`ResponseHandler`], filled in for our own loops.

use std::sync::{Arc, Mutex, PoisonError};

use hickory_proto::{
    ProtoError,
    op::Edns,
    rr::Record,
    serialize::binary::{BinEncodable, BinEncoder},
};
use hickory_server::{
    net::NetError,
    server::{Request, ResponseHandler, ResponseInfo},
    zone_handler::MessageResponse,
};

use super::request::{HEADER, limit};

/// The place for one reply.
#[derive(Clone)]
pub(crate) struct Reply {
    limit: u16,
    /// Where the question ends.
    question_end: usize,
    /// Our loops send it.
    bytes: Arc<Mutex<Vec<u8>>>,
}

impl Reply {
    pub(crate) fn new(request: &Request) -> Self {
        Self {
            limit: limit(request),
            question_end: HEADER + request.queries.as_bytes().len(),
            bytes: Arc::default(),
        }
    }

    /// The bytes of the reply; empty when there was none.
    pub(crate) fn take(&self) -> Vec<u8> {
        std::mem::take(&mut *self.bytes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What the encoder had to cut has no records any more, only the question and OPT: the encoder
    /// writes OPT last and drops it when the message is full, which RFC 6891, section 7, forbids.
    fn cut(&self, bytes: &mut Vec<u8>, edns: Option<&Edns>) -> Result<(), ProtoError> {
        bytes.truncate(self.question_end);
        let additionals = u8::from(edns.is_some());
        bytes[6..HEADER].copy_from_slice(&[0, 0, 0, 0, 0, additionals]);
        if let Some(edns) = edns {
            Record::from(edns).emit(&mut BinEncoder::with_offset(bytes, self.question_end as u32))?;
        }
        Ok(())
    }
}

#[async_trait::async_trait]
impl ResponseHandler for Reply {
    async fn send_response<'a>(
        &mut self,
        response: MessageResponse<
            '_,
            'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
        >,
    ) -> Result<ResponseInfo, NetError> {
        let edns = response.edns();
        let was_cut = response.metadata().truncation;
        let mut bytes = Vec::with_capacity(512);
        let mut encoder = BinEncoder::new(&mut bytes);
        encoder.set_max_size(self.limit);
        let info = response.destructive_emit(&mut encoder)?;
        if info.truncation && !was_cut {
            self.cut(&mut bytes, edns)?;
        }
        *self.bytes.lock().unwrap_or_else(PoisonError::into_inner) = bytes;
        Ok(info)
    }
}

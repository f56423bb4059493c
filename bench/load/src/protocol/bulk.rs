//! One-way streams: the request says how many bytes follow it, and how many are to come back.

use super::{Progress, Protocol, Scrutiny, WrongReply};

/// What flows, again and again. Small enough for a processor's cache, like the data of a program
/// that makes what it sends.
const BLOCK_BYTES: usize = 256 * 1024;

/// Bytes of two numbers, big-endian, of eight bytes each: how many the client sends after them, and
/// how many the server is to answer once it has those.
const HEAD_BYTES: usize = 16;

/// What an upload is answered with.
const RECEIPT_BYTES: usize = 1;

/// Moves a number of bytes in one direction.
pub struct Bulk {
    head: [u8; HEAD_BYTES],
    up: usize,
    down: usize,
    block: Vec<u8>,
}

/// One transfer.
pub struct Transfer {
    received: usize,
}

impl Bulk {
    /// The client sends `bytes`, and the server one in return.
    pub fn upload(bytes: usize) -> Self {
        Self::new(bytes, RECEIPT_BYTES)
    }

    /// The server sends `bytes`.
    pub fn download(bytes: usize) -> Self {
        Self::new(0, bytes)
    }

    fn new(up: usize, down: usize) -> Self {
        let mut head = [0; HEAD_BYTES];
        head[..8].copy_from_slice(&(up as u64).to_be_bytes());
        head[8..].copy_from_slice(&(down as u64).to_be_bytes());
        Self { head, up, down, block: vec![b'u'; BLOCK_BYTES] }
    }
}

impl Protocol for Bulk {
    type Exchange = Transfer;

    fn begin(&self, _: usize, _: u64) -> Transfer {
        Transfer { received: 0 }
    }

    fn request<'a>(&'a self, _: &'a Transfer, sent: usize) -> &'a [u8] {
        match sent.checked_sub(HEAD_BYTES) {
            None => &self.head[sent..],
            Some(sent) => &self.block[..(self.up - sent).min(BLOCK_BYTES)],
        }
    }

    fn reply(
        &self,
        transfer: &mut Transfer,
        bytes: &[u8],
        _: Scrutiny,
    ) -> Result<Progress, WrongReply> {
        transfer.received += bytes.len();
        if transfer.received > self.down {
            return Err(WrongReply(format!(
                "{} bytes came back for {} asked for",
                transfer.received, self.down
            )));
        }
        Ok(if transfer.received == self.down { Progress::Complete } else { Progress::More })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole_request(bulk: &Bulk) -> Vec<u8> {
        let transfer = bulk.begin(0, 0);
        let mut sent = Vec::new();
        loop {
            let rest = bulk.request(&transfer, sent.len());
            if rest.is_empty() {
                return sent;
            }
            sent.extend_from_slice(&rest[..rest.len().min(100_000)]);
        }
    }

    #[test]
    fn an_upload_is_a_head_and_all_its_bytes() {
        let request = whole_request(&Bulk::upload(1_000_000));
        assert_eq!(request.len(), 16 + 1_000_000);
        assert_eq!(request[..8], 1_000_000_u64.to_be_bytes());
        assert_eq!(request[8..16], 1_u64.to_be_bytes());
    }

    #[test]
    fn a_download_is_asked_for_in_a_head_and_complete_at_its_last_byte() {
        let bulk = Bulk::download(1000);
        let request = whole_request(&bulk);
        assert_eq!(request[..8], [0; 8]);
        assert_eq!(request[8..], 1000_u64.to_be_bytes());
        let mut transfer = bulk.begin(0, 0);
        let reply =
            |transfer: &mut _, count| bulk.reply(transfer, &[7; 1000][..count], Scrutiny::Quick);
        assert_eq!(reply(&mut transfer, 999), Ok(Progress::More));
        assert_eq!(reply(&mut transfer, 1), Ok(Progress::Complete));
        let mut transfer = bulk.begin(0, 1);
        assert_eq!(reply(&mut transfer, 1000), Ok(Progress::Complete));
        assert!(reply(&mut transfer, 1).is_err());
    }
}

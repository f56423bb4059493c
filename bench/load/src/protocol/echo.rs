//! The echo protocol: a fixed number of bytes out, the same bytes back.

use super::{Progress, Protocol, Scrutiny, WrongReply};

/// Payloads start at this many different places of the pattern, so that a reply which belongs to
/// another connection or to an earlier request is told apart.
const OFFSETS: usize = 251;

/// How many bytes of each chunk are compared under [`Scrutiny::Quick`].
const QUICK_BYTES: usize = 64;

/// Sends `size` bytes and expects them back.
pub struct Echo {
    size: usize,
    pattern: Vec<u8>,
}

/// One echo in flight.
pub struct EchoExchange {
    offset: usize,
    received: usize,
}

impl Echo {
    /// An echo of `size` bytes; `size` is at least 1.
    pub fn new(size: usize) -> Self {
        assert!(size > 0, "an echo needs at least one byte");
        Self { size, pattern: pseudo_random_bytes(size + OFFSETS) }
    }
}

impl Protocol for Echo {
    type Exchange = EchoExchange;

    fn begin(&self, connection: usize, number: u64) -> EchoExchange {
        let step = (number % OFFSETS as u64) as usize;
        EchoExchange { offset: (connection % OFFSETS * 31 + step * 7) % OFFSETS, received: 0 }
    }

    fn request<'a>(&'a self, exchange: &'a EchoExchange, sent: usize) -> &'a [u8] {
        &self.pattern[exchange.offset + sent..exchange.offset + self.size]
    }

    fn reply(
        &self,
        exchange: &mut EchoExchange,
        bytes: &[u8],
        scrutiny: Scrutiny,
    ) -> Result<Progress, WrongReply> {
        let missing = self.request(exchange, exchange.received);
        if bytes.len() > missing.len() {
            return Err(WrongReply(format!(
                "{} bytes came back for {} sent",
                exchange.received + bytes.len(),
                self.size
            )));
        }
        let compared = match scrutiny {
            Scrutiny::Quick => bytes.len().min(QUICK_BYTES),
            Scrutiny::Full => bytes.len(),
        };
        if bytes[..compared] != missing[..compared] {
            let at = (0..compared).find(|&i| bytes[i] != missing[i]);
            return Err(WrongReply(format!(
                "byte {} of {} differs from what was sent",
                exchange.received + at.unwrap_or_default(),
                self.size
            )));
        }
        exchange.received += bytes.len();
        Ok(if exchange.received == self.size { Progress::Complete } else { Progress::More })
    }
}

/// Bytes without short repetitions (xorshift64), the same in every run.
fn pseudo_random_bytes(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..length).map(|_| next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_in_pieces_completes_at_its_last_byte() {
        let echo = Echo::new(1000);
        let mut exchange = echo.begin(3, 9);
        let request = echo.request(&exchange, 0).to_vec();
        assert_eq!(request.len(), 1000);
        for (piece, expected) in [
            (&request[..1], Progress::More),
            (&request[1..999], Progress::More),
            (&request[999..], Progress::Complete),
        ] {
            assert_eq!(echo.reply(&mut exchange, piece, Scrutiny::Full), Ok(expected));
        }
    }

    #[test]
    fn surplus_bytes_are_wrong() {
        let echo = Echo::new(4);
        let mut exchange = echo.begin(0, 0);
        let mut reply = echo.request(&exchange, 0).to_vec();
        reply.push(0);
        let wrong = echo.reply(&mut exchange, &reply, Scrutiny::Quick);
        assert_eq!(wrong, Err(WrongReply("5 bytes came back for 4 sent".into())));
    }

    #[test]
    fn full_scrutiny_sees_the_last_byte() {
        let echo = Echo::new(4096);
        let mut exchange = echo.begin(0, 0);
        let mut reply = echo.request(&exchange, 0).to_vec();
        reply[4095] ^= 1;
        let wrong = echo.reply(&mut exchange, &reply, Scrutiny::Full).unwrap_err();
        assert_eq!(wrong.0, "byte 4095 of 4096 differs from what was sent");
    }

    #[test]
    fn quick_scrutiny_tells_connections_and_exchanges_apart() {
        let echo = Echo::new(64);
        for other in [echo.begin(1, 0), echo.begin(0, 1), echo.begin(7, 12)] {
            let reply = echo.request(&other, 0).to_vec();
            let mut exchange = echo.begin(0, 0);
            assert!(echo.reply(&mut exchange, &reply, Scrutiny::Quick).is_err());
        }
    }

    #[test]
    fn the_largest_counters_keep_the_payload_inside_the_pattern() {
        let echo = Echo::new(1);
        assert_eq!(echo.request(&echo.begin(usize::MAX, u64::MAX), 0).len(), 1);
    }
}

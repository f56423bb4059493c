//! HTTP/1.1 GET requests; replies are read to the end of their bodies and must have status 200.

use std::fmt::Display;

use httparse::{EMPTY_HEADER, Response, Status};

use super::{Progress, Protocol, Scrutiny, WrongReply};

/// Headers that a reply may have.
const MOST_HEADERS: usize = 64;

/// Bytes that a reply's head, or the line before a chunk, may take.
const MOST_HEAD_BYTES: usize = 64 * 1024;

/// Asks for one path, again and again.
pub struct Get {
    request: Vec<u8>,
}

/// One request in flight: where its reply stands.
pub struct GetExchange {
    state: State,
    /// The beginning of what cannot be understood before more of it is there.
    partial: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Head,
    /// So many bytes of the body, the last ones.
    Body(usize),
    ChunkSize,
    /// So many bytes of a chunk, with the line end after it.
    Chunk(usize),
    /// Lines, the last of which is empty.
    Trailer,
    Complete,
}

impl Get {
    /// A request for `path` of `host`. `close` asks the server to close the connection after it.
    pub fn new(host: impl Display, path: &str, close: bool) -> Self {
        let connection = if close { "Connection: close\r\n" } else { "" };
        Self { request: format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{connection}\r\n").into() }
    }
}

impl Protocol for Get {
    type Exchange = GetExchange;

    fn begin(&self, _: usize, _: u64) -> GetExchange {
        GetExchange { state: State::Head, partial: Vec::new() }
    }

    fn request<'a>(&'a self, _: &'a GetExchange, sent: usize) -> &'a [u8] {
        &self.request[sent..]
    }

    fn reply(
        &self,
        exchange: &mut GetExchange,
        bytes: &[u8],
        _: Scrutiny,
    ) -> Result<Progress, WrongReply> {
        let mut joined;
        let mut rest = bytes;
        if !exchange.partial.is_empty() {
            joined = std::mem::take(&mut exchange.partial);
            joined.extend_from_slice(bytes);
            rest = &joined;
        }
        while !rest.is_empty() && exchange.state != State::Complete {
            match exchange.state.advance(rest)? {
                Some((state, used)) => {
                    exchange.state = state;
                    rest = &rest[used..];
                }
                None if rest.len() > MOST_HEAD_BYTES => {
                    return Err(WrongReply("a head without an end".into()));
                }
                None => {
                    exchange.partial = rest.to_vec();
                    return Ok(Progress::More);
                }
            }
        }
        match exchange.state {
            State::Complete if rest.is_empty() => Ok(Progress::Complete),
            State::Complete => {
                Err(WrongReply(format!("{} bytes came after the reply", rest.len())))
            }
            _ => Ok(Progress::More),
        }
    }
}

impl State {
    /// What follows in the reply after the next bytes, and how many those are; none if there are
    /// too few to tell.
    fn advance(self, bytes: &[u8]) -> Result<Option<(Self, usize)>, WrongReply> {
        Ok(match self {
            Self::Head => read_head(bytes)?,
            Self::Body(left) if left <= bytes.len() => Some((Self::Complete, left)),
            Self::Body(left) => Some((Self::Body(left - bytes.len()), bytes.len())),
            Self::ChunkSize => match httparse::parse_chunk_size(bytes) {
                Ok(Status::Complete((used, 0))) => Some((Self::Trailer, used)),
                Ok(Status::Complete((used, size))) => {
                    let size = usize::try_from(size).ok().and_then(|size| size.checked_add(2));
                    let too_large = || WrongReply("a chunk of impossible size".into());
                    Some((Self::Chunk(size.ok_or_else(too_large)?), used))
                }
                Ok(Status::Partial) => None,
                Err(error) => return Err(WrongReply(format!("a bad chunk: {error}"))),
            },
            Self::Chunk(left) if left <= bytes.len() => Some((Self::ChunkSize, left)),
            Self::Chunk(left) => Some((Self::Chunk(left - bytes.len()), bytes.len())),
            Self::Trailer => match bytes.windows(2).position(|pair| pair == b"\r\n") {
                None => None,
                Some(0) => Some((Self::Complete, 2)),
                Some(length) => Some((Self::Trailer, length + 2)),
            },
            Self::Complete => None,
        })
    }
}

fn read_head(bytes: &[u8]) -> Result<Option<(State, usize)>, WrongReply> {
    let mut headers = [EMPTY_HEADER; MOST_HEADERS];
    let mut response = Response::new(&mut headers);
    let parsed = response.parse(bytes).map_err(|error| WrongReply(format!("no HTTP: {error}")))?;
    let Status::Complete(used) = parsed else { return Ok(None) };
    match response.code {
        Some(200) => {}
        code => return Err(WrongReply(format!("status {}", code.unwrap_or_default()))),
    }
    let find = |name: &str| {
        let mut named =
            response.headers.iter().filter(|known| known.name.eq_ignore_ascii_case(name));
        named.next().and_then(|header| str::from_utf8(header.value).ok())
    };
    if find("Transfer-Encoding").is_some_and(|value| value.trim().eq_ignore_ascii_case("chunked")) {
        return Ok(Some((State::ChunkSize, used)));
    }
    match find("Content-Length").map(|value| value.trim().parse()) {
        Some(Ok(0)) => Ok(Some((State::Complete, used))),
        Some(Ok(length)) => Ok(Some((State::Body(length), used))),
        Some(Err(_)) => Err(WrongReply("a Content-Length that is no number".into())),
        None => Err(WrongReply("neither Content-Length nor chunks".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `reply` in pieces of `size` bytes.
    fn feed(reply: &str, size: usize) -> Result<Progress, WrongReply> {
        let get = Get::new("localhost", "/", false);
        let mut exchange = get.begin(0, 0);
        let mut progress = Progress::More;
        for piece in reply.as_bytes().chunks(size) {
            assert_eq!(progress, Progress::More, "complete before the last piece");
            progress = get.reply(&mut exchange, piece, Scrutiny::Quick)?;
        }
        Ok(progress)
    }

    const PLAIN: &str = "HTTP/1.1 200 OK\r\nserver: x\r\ncontent-length: 13\r\n\r\nHello, world!";
    const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
                           5\r\nHello\r\na;x=y\r\n0123456789\r\n0\r\nX-End: 1\r\n\r\n";

    #[test]
    fn the_request_says_who_asks_for_what() {
        let get = Get::new("127.0.0.1:80", "/x", true);
        let request = get.request(&get.begin(0, 0), 0).to_vec();
        let text = String::from_utf8(request).unwrap();
        assert_eq!(text, "GET /x HTTP/1.1\r\nHost: 127.0.0.1:80\r\nConnection: close\r\n\r\n");
    }

    #[test]
    fn replies_in_pieces_of_any_size_complete_at_their_last_byte() {
        for reply in [PLAIN, CHUNKED, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"] {
            for size in 1..=reply.len() {
                assert_eq!(feed(reply, size), Ok(Progress::Complete), "{reply} by {size}");
            }
        }
    }

    #[test]
    fn replies_that_end_early_are_not_complete() {
        for reply in [PLAIN, CHUNKED] {
            assert_eq!(feed(&reply[..reply.len() - 1], 7), Ok(Progress::More));
        }
    }

    #[test]
    fn other_replies_are_wrong() {
        for (reply, complaint) in [
            ("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "status 404"),
            ("HTTP/1.1 200 OK\r\n\r\n", "neither Content-Length nor chunks"),
            ("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "no number"),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "bad chunk"),
            ("SSH-2.0-OpenSSH\r\n", "no HTTP"),
            (&format!("{PLAIN}!"), "1 bytes came after the reply"),
        ] {
            let wrong = feed(reply, reply.len()).unwrap_err();
            assert!(wrong.0.contains(complaint), "{reply}: {}", wrong.0);
        }
    }
}

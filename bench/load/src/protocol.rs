//! What is said on a connection: the requests, and how the end of a reply is recognised.

mod bulk;
mod echo;
mod http;

pub use bulk::Bulk;
pub use echo::Echo;
pub use http::Get;

/// Whether the bytes seen so far complete the reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    More,
    Complete,
}

/// How closely a reply is compared with what it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scrutiny {
    /// Lengths, and whatever costs next to nothing.
    Quick,
    /// Every byte.
    Full,
}

/// A reply that is not the one the request calls for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrongReply(pub String);

/// A request and reply protocol over a byte stream.
pub trait Protocol {
    /// One request and what is known of its reply.
    type Exchange;

    /// The `number`th exchange of a connection; `connection` is the connection's index.
    fn begin(&self, connection: usize, number: u64) -> Self::Exchange;

    /// What the exchange's request goes on with after its first `sent` bytes, or the beginning of
    /// that; nothing at its end.
    fn request<'a>(&'a self, exchange: &'a Self::Exchange, sent: usize) -> &'a [u8];

    /// Takes the next bytes of the reply. Never called with no bytes, nor after
    /// [`Progress::Complete`] or an error.
    fn reply(
        &self,
        exchange: &mut Self::Exchange,
        bytes: &[u8],
        scrutiny: Scrutiny,
    ) -> Result<Progress, WrongReply>;
}

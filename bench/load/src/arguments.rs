//! The command line.

use std::ffi::OsString;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use lexopt::prelude::*;

use crate::connection::Lifetime;
use crate::fleet::Wait;
use crate::socket::Address;

pub const USAGE: &str = "\
kloop-load: compare servers by visiting them in turn, in short bursts of requests

usage: kloop-load --target NAME=ADDRESS[@PID] [--target ...] --connections N WORK
                  (--duration SECONDS | --rounds N --burst-ms MS) [options]
       kloop-load --target NAME=ADDRESS [--target ...] --connections N WORK --hold

  --target NAME=ADDRESS[@PID]    a server at HOST:PORT, tls:HOST:PORT, unix:PATH or udp:HOST:PORT;
                                 with PID, or PID+PID..., its processor time per request is
                                 reported
  --connections N                connections to each target, one request in flight on each; over
                                 UDP, a request without a reply for 200 ms is lost

work:
  --size BYTES                   an echo of that many bytes
  --get PATH                     HTTP/1.1, read to the end of the body; the status must be 200
  --download BYTES               the request is two numbers of eight bytes, big-endian: how many
                                 bytes follow (none) and how many bytes the reply has to have
  --upload BYTES                 the same with BYTES that follow and a reply of one byte

options:
  --duration SECONDS             one burst of that length for each target
  --rounds N                     visits to each target; every other round goes in reverse order
  --burst-ms MS                  length of a visit
  --warmup-ms MS                 a visit before the rounds that is not counted (default 200)
  --timeout-ms MS                patience with a connect or a late reply (default 5000)
  --cpu K                        keep the client on processor K
  --sleep                        sleep while no reply is there, instead of spinning
  --rate N                       begin N requests per second, late replies or not; a latency counts
                                 from when the request was due
  --single-request               each request on a connection of its own, which the server closes
                                 after its reply
  --hold                         do the work once on each connection, say HOLDS and their number,
                                 and keep the connections open until standard input ends
  --help, --version

The result is one JSON object on standard output. Exit code 1: a target cannot be reached, or a
reply is wrong. Exit code 2: the command line makes no sense.
";

/// A server to visit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub name: String,
    pub address: Address,
    /// Its processes, as far as they are known.
    pub pids: Vec<u32>,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let malformed = || format!("'{text}' is not NAME=ADDRESS[@PID]");
        let (name, rest) = text.split_once('=').ok_or_else(malformed)?;
        if name.is_empty() {
            return Err(malformed());
        }
        let (address, pids) = match rest.rsplit_once('@') {
            Some((address, pids)) => {
                let pids: Result<_, _> = pids.split('+').map(str::parse).collect();
                (address, pids.map_err(|_| malformed())?)
            }
            None => (rest, Vec::new()),
        };
        let address =
            address.parse().map_err(|error| format!("target '{name}': {address}: {error}"))?;
        Ok(Self { name: name.to_owned(), address, pids })
    }
}

/// What a request asks a server to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    /// Send back that many bytes.
    Echo(usize),
    /// Answer a GET request for this path.
    Get(String),
    /// Send that many bytes.
    Download(usize),
    /// Take that many bytes.
    Upload(usize),
}

impl Work {
    /// How many bytes of payload a request moves, if that is known.
    pub fn size(&self) -> Option<usize> {
        match self {
            Self::Echo(size) | Self::Download(size) | Self::Upload(size) => Some(*size),
            Self::Get(_) => None,
        }
    }
}

/// Connections that are opened and kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    pub targets: Vec<Target>,
    pub connections: usize,
    pub work: Work,
    pub timeout: Duration,
}

/// A whole run.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    pub targets: Vec<Target>,
    pub connections: usize,
    pub work: Work,
    pub lifetime: Lifetime,
    pub rounds: usize,
    pub burst: Duration,
    pub warmup: Duration,
    pub timeout: Duration,
    pub cpu: Option<usize>,
    pub wait: Wait,
    pub rate: Option<f64>,
}

/// What the command line asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    Run(Plan),
    Hold(Hold),
    Help,
    Version,
}

/// A command line that makes no sense, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageError(pub String);

impl fmt::Display for UsageError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl From<lexopt::Error> for UsageError {
    fn from(error: lexopt::Error) -> Self {
        Self(error.to_string())
    }
}

/// Reads the arguments that follow the program's name.
pub fn parse<I>(arguments: I) -> Result<Request, UsageError>
where
    I: IntoIterator,
    I::Item: Into<OsString>,
{
    let mut targets = Vec::new();
    let mut works = Vec::new();
    let (mut connections, mut rounds, mut cpu) = (None, None, None);
    let (mut burst, mut duration, mut rate) = (None, None, None);
    let mut warmup = Duration::from_millis(200);
    let mut timeout = Duration::from_millis(5000);
    let mut wait = Wait::Spin;
    let mut lifetime = Lifetime::Persistent;
    let mut hold = false;

    let mut parser = lexopt::Parser::from_args(arguments);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("target") => targets.push(parser.value()?.parse()?),
            Long("connections") => connections = Some(positive(&mut parser, "connections")?),
            Long("size") => works.push(Work::Echo(positive(&mut parser, "size")?)),
            Long("get") => works.push(Work::Get(parser.value()?.string()?)),
            Long("download") => works.push(Work::Download(positive(&mut parser, "download")?)),
            Long("upload") => works.push(Work::Upload(positive(&mut parser, "upload")?)),
            Long("rounds") => rounds = Some(positive(&mut parser, "rounds")?),
            Long("duration") => duration = Some(seconds(&mut parser)?),
            Long("burst-ms") => {
                burst = Some(Duration::from_millis(positive(&mut parser, "burst-ms")? as u64));
            }
            Long("warmup-ms") => warmup = Duration::from_millis(parser.value()?.parse()?),
            Long("timeout-ms") => timeout = Duration::from_millis(parser.value()?.parse()?),
            Long("cpu") => cpu = Some(parser.value()?.parse()?),
            Long("sleep") => wait = Wait::Sleep,
            Long("rate") => rate = Some(per_second(&mut parser)?),
            Long("single-request") => lifetime = Lifetime::SingleRequest,
            Long("hold") => hold = true,
            Long("help") | Short('h') => return Ok(Request::Help),
            Long("version") | Short('V') => return Ok(Request::Version),
            other => return Err(other.unexpected().into()),
        }
    }

    if targets.is_empty() {
        return Err(refuse("--target is missing"));
    }
    let connections = connections.ok_or_else(|| refuse("--connections is missing"))?;
    let [work] = <[Work; 1]>::try_from(works)
        .map_err(|_| refuse("one of --size, --get, --download and --upload is needed"))?;
    if hold {
        if rounds.is_some() || burst.is_some() || duration.is_some() {
            return Err(refuse("--hold has no bursts"));
        }
        return Ok(Request::Hold(Hold { targets, connections, work, timeout }));
    }
    let (rounds, burst) = match (duration, rounds, burst) {
        (Some(duration), None, None) => (1, duration),
        (None, Some(rounds), Some(burst)) => (rounds, burst),
        _ => return Err(refuse("either --duration, or --rounds and --burst-ms, is needed")),
    };
    if rate.is_some() && wait == Wait::Sleep {
        return Err(refuse("a client that sleeps cannot keep to a --rate"));
    }
    Ok(Request::Run(Plan {
        targets,
        connections,
        work,
        lifetime,
        rounds,
        burst,
        warmup,
        timeout,
        cpu,
        wait,
        rate,
    }))
}

fn refuse(message: &str) -> UsageError {
    UsageError(message.to_owned())
}

fn positive(parser: &mut lexopt::Parser, option: &str) -> Result<usize, UsageError> {
    match parser.value()?.parse()? {
        0 => Err(UsageError(format!("--{option} must be at least 1"))),
        number => Ok(number),
    }
}

fn seconds(parser: &mut lexopt::Parser) -> Result<Duration, UsageError> {
    let seconds: f64 = parser.value()?.parse()?;
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| UsageError("--duration must be a positive number of seconds".into()))
}

fn per_second(parser: &mut lexopt::Parser) -> Result<f64, UsageError> {
    let rate: f64 = parser.value()?.parse()?;
    // An interval has to fit into a Duration, in whole nanoseconds.
    if (1e-3..=1e9).contains(&rate) {
        Ok(rate)
    } else {
        Err(refuse("--rate must be between 0.001 and 1e9 per second"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(line: &str) -> Plan {
        match parse(line.split_whitespace()) {
            Ok(Request::Run(plan)) => plan,
            other => panic!("{line}: {other:?}"),
        }
    }

    fn complaint(line: &str) -> String {
        parse(line.split_whitespace()).unwrap_err().0
    }

    #[test]
    fn targets_of_both_families_with_and_without_a_process() {
        let plan = plan(
            "--target a=127.0.0.1:80 --target b=[::1]:81@77+78 --connections 3 --size 9 --duration 1.5",
        );
        assert_eq!(plan.targets[0].address, Address::Tcp("127.0.0.1:80".parse().unwrap()));
        assert_eq!(plan.targets[0].pids, []);
        assert_eq!(plan.targets[1].address, Address::Tcp("[::1]:81".parse().unwrap()));
        assert_eq!(plan.targets[1].pids, [77, 78]);
        assert_eq!(plan.work, Work::Echo(9));
        assert_eq!((plan.rounds, plan.burst), (1, Duration::from_millis(1500)));
        assert_eq!(plan.wait, Wait::Spin);
    }

    #[test]
    fn targets_of_other_transports() {
        let rest = "--connections 1 --size 1 --duration 1";
        let plan = plan(&format!("--target a=unix:/tmp/x@7 --target b=udp:[::1]:5 {rest}"));
        assert_eq!(plan.targets[0].address, Address::Unix("/tmp/x".into()));
        assert_eq!(plan.targets[0].pids, [7]);
        assert_eq!(plan.targets[1].address, Address::Udp("[::1]:5".parse().unwrap()));
        assert_eq!(plan.targets[1].address.to_string(), "udp:[::1]:5");
    }

    #[test]
    fn rounds_come_with_bursts() {
        let line = "--target a=127.0.0.1:80 --connections 1 --size 1 --rounds 4 --burst-ms 20 \
                    --warmup-ms 0 --cpu 1 --sleep";
        let plan = plan(line);
        assert_eq!((plan.rounds, plan.burst), (4, Duration::from_millis(20)));
        assert_eq!((plan.warmup, plan.cpu), (Duration::ZERO, Some(1)));
        assert_eq!(plan.wait, Wait::Sleep);
    }

    #[test]
    fn work_of_every_kind() {
        let rest = "--target a=127.0.0.1:1 --connections 1 --duration 1";
        assert_eq!(plan(&format!("{rest} --get /x?y")).work, Work::Get("/x?y".into()));
        assert_eq!(plan(&format!("{rest} --download 5")).work, Work::Download(5));
        assert_eq!(plan(&format!("{rest} --upload 6")).work, Work::Upload(6));
        let plan = plan(&format!("{rest} --size 7 --single-request --rate 2.5"));
        assert_eq!((plan.work, plan.lifetime), (Work::Echo(7), Lifetime::SingleRequest));
        assert_eq!(plan.rate, Some(2.5));
        assert!(complaint(&format!("{rest} --size 1 --get /")).contains("one of --size"));
        assert!(complaint(&format!("{rest} --size 1 --rate 0")).contains("--rate"));
        assert!(complaint(&format!("{rest} --size 1 --rate 1 --sleep")).contains("sleeps"));
    }

    #[test]
    fn holding_takes_no_bursts() {
        let line = "--target a=127.0.0.1:1 --connections 2 --size 3 --hold";
        match parse(line.split_whitespace()) {
            Ok(Request::Hold(hold)) => {
                assert_eq!((hold.connections, hold.work), (2, Work::Echo(3)));
            }
            other => panic!("{other:?}"),
        }
        assert!(complaint(&format!("{line} --duration 1")).contains("no bursts"));
    }

    #[test]
    fn nonsense_is_refused_in_words() {
        let rest = "--connections 1 --size 1 --duration 1";
        assert_eq!(complaint(rest), "--target is missing");
        assert!(complaint(&format!("--target x {rest}")).contains("NAME=ADDRESS"));
        assert!(complaint(&format!("--target a=127.0.0.1:1@x {rest}")).contains("NAME=ADDRESS"));
        let target = "--target a=127.0.0.1:1";
        assert!(complaint(&format!("{target} --connections 0")).contains("at least 1"));
        assert!(complaint(&format!("{target} {rest} --rounds 1")).contains("--duration"));
        assert!(complaint(&format!("{target} --connections 1 --duration 1")).contains("--size"));
        assert!(complaint(&format!("{target} --duration -1")).contains("positive"));
        assert!(complaint("--wat").contains("--wat"));
    }

    #[test]
    fn help_and_version_need_nothing_else() {
        assert_eq!(parse(["--help"]), Ok(Request::Help));
        assert_eq!(parse(["-V"]), Ok(Request::Version));
    }
}

//! The driver against the kernel: real rings and epoll instances, real sockets on loopback, every
//! wait bounded. What both kinds of drivers promise is tested with both, by the same code.

// The same files are modules of both kinds' tests.
#![allow(clippy::duplicate_mod)]

mod pipes;
mod setup;
mod sockets;

#[path = "."]
mod uring {
    use super::*;

    const CHOICE: Choice = Choice::Uring;
    const POLLER: Option<Poller> = None;

    #[path = "cancel.rs"]
    mod cancel;
    #[path = "close.rs"]
    mod close;
    #[path = "limits.rs"]
    mod limits;
    #[path = "only_uring.rs"]
    mod only_uring;
    #[path = "operations.rs"]
    mod operations;
    #[path = "receive.rs"]
    mod receive;
    #[path = "wake.rs"]
    mod wake;

    fn config() -> Config {
        Config { receive: true, ..Config::default() }
    }

    fn driver() -> Driver<u32> {
        Driver::new(&Config::default(), CHOICE).unwrap()
    }

    fn small_driver(entries: u32, cq_entries: u32) -> Driver<u32> {
        Driver::new(&Config { entries, cq_entries, ..Config::default() }, CHOICE).unwrap()
    }
}

/// A ring with a poller.
#[path = "."]
mod polled {
    use super::*;

    const CHOICE: Choice = Choice::Uring;
    const POLLER: Option<Poller> = Some(Poller { idle: 4, cpu: None });

    #[path = "cancel.rs"]
    mod cancel;
    #[path = "close.rs"]
    mod close;
    #[path = "limits.rs"]
    mod limits;
    #[path = "only_polled.rs"]
    mod only_polled;
    #[path = "operations.rs"]
    mod operations;
    #[path = "receive.rs"]
    mod receive;
    #[path = "wake.rs"]
    mod wake;

    fn config() -> Config {
        Config { poller: POLLER, receive: true, ..Config::default() }
    }

    fn driver() -> Driver<u32> {
        Driver::new(&config(), CHOICE).unwrap()
    }

    fn small_driver(entries: u32, cq_entries: u32) -> Driver<u32> {
        let config = Config { entries, cq_entries, poller: POLLER, receive: true };
        Driver::new(&config, CHOICE).unwrap()
    }
}

#[path = "."]
mod epoll {
    use super::*;

    const CHOICE: Choice = Choice::Epoll;
    const POLLER: Option<Poller> = None;

    #[path = "cancel.rs"]
    mod cancel;
    #[path = "close.rs"]
    mod close;
    #[path = "limits.rs"]
    mod limits;
    #[path = "only_epoll.rs"]
    mod only_epoll;
    #[path = "operations.rs"]
    mod operations;
    #[path = "wake.rs"]
    mod wake;

    fn driver() -> Driver<u32> {
        Driver::new(&Config::default(), CHOICE).unwrap()
    }

    fn small_driver(entries: u32, cq_entries: u32) -> Driver<u32> {
        Driver::new(&Config { entries, cq_entries, ..Config::default() }, CHOICE).unwrap()
    }
}

use std::env;
use std::fs;
use std::io::{self, Read};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::{Duration, Instant};

use super::*;

const IN: u32 = libc::POLLIN as u32;
const OUT: u32 = libc::POLLOUT as u32;

/// No test waits longer for anything that must happen.
const LIMIT: Duration = Duration::from_secs(20);

/// The next event, waiting for it.
fn event(driver: &mut Driver<u32>) -> Event<u32> {
    let start = Instant::now();
    loop {
        if let Some(event) = driver.next() {
            return event;
        }
        assert!(start.elapsed() < LIMIT, "no event");
        driver.prepare_wait(Some(LIMIT)).block().unwrap();
    }
}

/// Takes events until nothing is in flight.
fn finish(driver: &mut Driver<u32>) -> Vec<Event<u32>> {
    let mut events = Vec::new();
    while driver.in_flight() > 0 {
        events.push(event(driver));
    }
    events
}

/// Waits until what is queued is started and what is due is reported, which a poller does in its
/// own time: the first round shows that it has come so far, the second that it has gone on.
fn start_queued(driver: &mut Driver<u32>) {
    driver.submit().unwrap();
    driver.backend.settle(1).unwrap();
    driver.backend.settle(1).unwrap();
}

/// A round trip through the kernel that shows what is there now, and nothing else.
fn no_event(driver: &mut Driver<u32>) {
    start_queued(driver);
    driver.prepare_wait(Some(Duration::ZERO)).block().unwrap();
    if let Some(event) = driver.next() {
        panic!("unexpected {event:?}");
    }
}

fn listener() -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    listener
}

/// Two ends of a connection. The first is non-blocking; reads of the second give up in time.
fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let near = listener.accept().unwrap().0;
    near.set_nonblocking(true).unwrap();
    far.set_read_timeout(Some(LIMIT)).unwrap();
    (near, far)
}

/// Fills the socket until it takes no more, even once what is under way has been acknowledged;
/// returns the number of bytes.
fn fill(socket: &impl AsRawFd) -> usize {
    const DELAYED_ACKNOWLEDGEMENT: libc::c_int = 50;
    let (mut sent, mut full) = (0, false);
    loop {
        match socket::send(socket.as_raw_fd(), &[7; 1 << 16]) {
            Ok(n) => {
                sent += n;
                full = false;
            }
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::EAGAIN));
                if mem::replace(&mut full, true) {
                    return sent;
                }
                let (fd, events) = (socket.as_raw_fd(), libc::POLLOUT);
                let mut room = libc::pollfd { fd, events, revents: 0 };
                // SAFETY: the pointer is to one pollfd.
                unsafe { libc::poll(&raw mut room, 1, DELAYED_ACKNOWLEDGEMENT) };
            }
        }
    }
}

fn at_end(mut stream: &TcpStream) -> bool {
    loop {
        match stream.read(&mut [0; 16]) {
            // As the end of a poller does.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => return read.unwrap() == 0,
        }
    }
}

#[track_caller]
fn assert_errno<R: std::fmt::Debug>(result: io::Result<R>, errno: i32) {
    let error = result.unwrap_err();
    assert_eq!(error.raw_os_error(), Some(errno), "{error}");
}

fn open_fds() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Runs the body in a process of its own, for what concerns the whole process. `module` and `test`
/// name the test that calls it.
fn in_own_process(module: &str, test: &str, body: impl FnOnce()) {
    const MARK: &str = "KLOOP_TEST_OWN_PROCESS";
    if env::var_os(MARK).is_some() {
        return body();
    }
    let module = module.split_once("::").unwrap().1;
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", &format!("{module}::{test}"), "--nocapture", "--test-threads=1"])
        .env(MARK, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("1 passed"), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
}

fn set_file_limit(files: u64) {
    let limit = libc::rlimit { rlim_cur: files, rlim_max: files };
    // SAFETY: the pointer is to one rlimit.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
}

/// The owners among what close() returns.
fn owners<T>(closed: Vec<(OpId, T)>) -> Vec<T> {
    closed.into_iter().map(|(_, owner)| owner).collect()
}

struct Smuggled<T>(T);
// SAFETY: this is the misuse under test; the sender does not touch it any more.
unsafe impl<T> Send for Smuggled<T> {}

/// Large enough that the allocator maps it alone, and unmaps it when it is freed.
fn large_buffer() -> (Vec<u8>, usize) {
    let buf = vec![0; 64 << 20];
    let page = buf.as_ptr() as usize & !0xfff;
    (buf, page + 0x10000)
}

fn is_mapped(page: usize) -> bool {
    let mut resident = 0u8;
    // SAFETY: mincore(2) checks the address and writes one byte for one page.
    unsafe { libc::mincore(page as *mut _, 1, &raw mut resident) == 0 }
}

//! Receiving into buffers that all operations of a driver share.

use std::io::Write;
use std::net::Shutdown;
use std::os::fd::AsRawFd;

use super::*;

/// All the memory that there is to receive into.
const MEMORY: usize = 8 * 256 * 1024;

fn driver() -> Driver<u32> {
    let driver: Driver<u32> = Driver::new(&config(), CHOICE).unwrap();
    assert!(driver.receives(), "Linux 6.12 or newer");
    driver
}

/// The next bytes; None at the end of the stream.
fn bytes(driver: &mut Driver<u32>) -> Option<Vec<u8>> {
    let event = event(driver);
    let Outcome::Receive(result) = event.outcome else { panic!() };
    let chunk = result.unwrap();
    assert_eq!(event.more, !chunk.is_empty());
    (!chunk.is_empty()).then(|| chunk.to_vec())
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n / 3 + n / 7919) as u8).collect()
}

/// Reads until so many bytes have come.
fn read(driver: &mut Driver<u32>, len: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < len {
        all.extend(bytes(driver).unwrap());
    }
    all
}

#[test]
fn bytes_come_in_order_until_the_end() {
    let mut driver = driver();
    let (near, mut far) = pair();
    let op = driver.receive(near.as_raw_fd(), 1).unwrap();
    far.write_all(b"one").unwrap();
    assert_eq!(bytes(&mut driver).unwrap(), b"one");
    far.write_all(b"two").unwrap();
    assert_eq!(bytes(&mut driver).unwrap(), b"two");
    far.shutdown(Shutdown::Write).unwrap();
    let last = event(&mut driver);
    assert_eq!((last.op, last.owner, last.more), (op, 1, false));
    assert!(matches!(last.outcome, Outcome::Receive(Ok(chunk)) if chunk.is_empty()));
    assert_eq!(driver.in_flight(), 0);
}

#[test]
fn a_reset_is_reported() {
    let mut driver = driver();
    let (near, far) = pair();
    driver.receive(near.as_raw_fd(), 1).unwrap();
    no_event(&mut driver);
    std::io::Write::write_all(&mut &near, b"never read").unwrap();
    drop(far);
    let Outcome::Receive(result) = event(&mut driver).outcome else { panic!() };
    assert_errno(result, libc::ECONNRESET);
}

#[test]
fn bad_descriptors_are_reported() {
    let mut driver = driver();
    driver.receive(-1, 1).unwrap();
    let Outcome::Receive(result) = event(&mut driver).outcome else { panic!() };
    assert_errno(result, libc::EBADF);
}

#[test]
fn memory_is_used_again_and_again() {
    let mut driver = driver();
    let (near, mut far) = pair();
    driver.receive(near.as_raw_fd(), 1).unwrap();
    let sent = pattern(5 * MEMORY);
    let copy = sent.clone();
    let writer = std::thread::spawn(move || far.write_all(&copy).map(|()| far));
    assert!(read(&mut driver, sent.len()) == sent);
    drop(writer.join().unwrap());
}

#[test]
fn connections_share_the_memory_and_do_not_mix() {
    let mut driver = driver();
    let mut pairs: Vec<_> = (0..20).map(|_| pair()).collect();
    for (n, (near, _)) in pairs.iter().enumerate() {
        driver.receive(near.as_raw_fd(), n as u32).unwrap();
    }
    let mut got = vec![Vec::new(); pairs.len()];
    let mut total = 0;
    for round in 0..40usize {
        for (n, (_, far)) in pairs.iter_mut().enumerate() {
            far.write_all(&vec![n as u8; 1 + n * 400 + round * 10]).unwrap();
            total += 1 + n * 400 + round * 10;
        }
        while got.iter().map(Vec::len).sum::<usize>() < total {
            let event = event(&mut driver);
            let Outcome::Receive(Ok(chunk)) = event.outcome else { panic!() };
            got[event.owner as usize].extend_from_slice(&chunk);
        }
    }
    for (n, bytes) in got.iter().enumerate() {
        assert!(bytes.iter().all(|byte| usize::from(*byte) == n));
        assert_eq!(bytes.len(), (0..40).map(|round| 1 + n * 400 + round * 10).sum::<usize>());
    }
}

/// Holds chunks until no memory is left. Returns them, and what was sent.
fn exhaust(driver: &mut Driver<u32>, far: &TcpStream) -> (Vec<Chunk>, Vec<u8>) {
    let sent = pattern(MEMORY + 1000);
    let mut held = Vec::new();
    let mut len = 0;
    for piece in sent.chunks(100_000) {
        let mut far = far;
        far.write_all(piece).unwrap();
        let due = (len + piece.len()).min(MEMORY);
        while len < due {
            let Outcome::Receive(Ok(chunk)) = event(driver).outcome else { panic!() };
            len += chunk.len();
            held.push(chunk);
        }
    }
    assert_eq!(len, MEMORY);
    (held, sent)
}

#[test]
fn without_memory_an_operation_goes_on_later() {
    let mut driver = driver();
    let (near, far) = pair();
    driver.receive(near.as_raw_fd(), 1).unwrap();
    let (held, sent) = exhaust(&mut driver, &far);
    no_event(&mut driver);
    let mut got: Vec<u8> = held.iter().flat_map(|chunk| chunk.to_vec()).collect();
    assert_eq!(driver.in_flight(), 1);
    drop(held);
    got.extend(read(&mut driver, sent.len() - got.len()));
    assert!(got == sent);
}

#[test]
fn an_operation_without_memory_can_be_cancelled() {
    let mut driver = driver();
    let (near, far) = pair();
    let op = driver.receive(near.as_raw_fd(), 1).unwrap();
    let (held, _) = exhaust(&mut driver, &far);
    no_event(&mut driver);
    driver.cancel(&[op]).unwrap();
    drop(near);
    let [last] = finish(&mut driver).try_into().unwrap();
    let Outcome::Receive(result) = last.outcome else { panic!() };
    assert_errno(result, libc::ECANCELED);
    drop(held);
    no_event(&mut driver);
}

#[test]
fn what_arrived_before_a_cancellation_is_delivered() {
    let mut driver = driver();
    for settle in [true, false] {
        for _ in 0..50 {
            let (near, mut far) = pair();
            let op = driver.receive(near.as_raw_fd(), 1).unwrap();
            far.write_all(b"in time").unwrap();
            driver.submit().unwrap();
            if settle {
                driver.cancel(&[op]).unwrap();
            } else {
                driver.cancel_later(op).unwrap();
            }
            let mut got = Vec::new();
            for event in finish(&mut driver) {
                match event.outcome {
                    Outcome::Receive(Ok(chunk)) => got.extend_from_slice(&chunk),
                    Outcome::Receive(result) => assert_errno(result, libc::ECANCELED),
                    _ => panic!(),
                }
            }
            // What has not arrived is still in the socket.
            let mut rest = [0; 16];
            if let Ok(count) = socket::recv(near.as_raw_fd(), &mut rest) {
                got.extend_from_slice(&rest[..count]);
            }
            assert_eq!(got, b"in time");
        }
    }
}

#[test]
fn a_cancelled_operation_takes_nothing_more() {
    let mut driver = driver();
    let (near, mut far) = pair();
    let op = driver.receive(near.as_raw_fd(), 1).unwrap();
    no_event(&mut driver);
    driver.cancel(&[op, op]).unwrap();
    far.write_all(b"late").unwrap();
    assert_eq!(finish(&mut driver).len(), 1);
    assert_eq!(socket::recv(near.as_raw_fd(), &mut [0; 16]).unwrap(), 4);
}

#[test]
fn chunks_outlive_the_driver() {
    let mut driver = driver();
    let (near, mut far) = pair();
    driver.receive(near.as_raw_fd(), 1).unwrap();
    far.write_all(b"kept").unwrap();
    let Outcome::Receive(Ok(chunk)) = event(&mut driver).outcome else { panic!() };
    assert_eq!(owners(driver.close()), [1]);
    drop(driver);
    assert_eq!(*chunk, *b"kept");
}

#[test]
fn close_with_bytes_that_nobody_took() {
    let mut driver = driver();
    let (near, mut far) = pair();
    driver.receive(near.as_raw_fd(), 1).unwrap();
    far.write_all(&pattern(100_000)).unwrap();
    driver.prepare_wait(Some(LIMIT)).block().unwrap();
    let start = Instant::now();
    assert_eq!(owners(driver.close()), [1]);
    assert!(start.elapsed() < DRAIN_LIMIT);
}

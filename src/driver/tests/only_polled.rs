//! What is so with a poller only: who starts what is queued, which threads may use the ring.

use std::os::fd::AsRawFd;
use std::thread;

use super::*;
use crate::driver::tests::setup::deny;

/// The kernel threads of this process that poll, once they have named themselves.
fn pollers() -> usize {
    let is_poller = |task: &io::Result<fs::DirEntry>| {
        let name = task.as_ref().map(|task| fs::read_to_string(task.path().join("comm")));
        matches!(name, Ok(Ok(name)) if name.starts_with("iou-sqp"))
    };
    fs::read_dir("/proc/self/task").unwrap().filter(is_poller).count()
}

#[track_caller]
fn await_pollers(count: usize) {
    let start = Instant::now();
    while pollers() != count {
        assert!(start.elapsed() < LIMIT, "{} pollers", pollers());
        thread::yield_now();
    }
}

fn driver_with(poller: Poller) -> Driver<u32> {
    Driver::new(&Config { poller: Some(poller), ..Config::default() }, CHOICE).unwrap()
}

#[test]
fn rings_that_ask_for_the_same_share_a_poller() {
    in_own_process(module_path!(), "rings_that_ask_for_the_same_share_a_poller", || {
        let first = driver();
        let second = driver();
        thread::scope(|scope| {
            scope.spawn(|| drop(driver()));
        });
        await_pollers(1);
        let other = driver_with(Poller { idle: 5, cpu: None });
        await_pollers(2);
        drop(first);
        let third = driver();
        await_pollers(2);
        drop((second, other));
        await_pollers(1);
        drop(third);
        await_pollers(0);
    });
}

#[test]
fn a_poller_runs_where_it_is_told() {
    in_own_process(module_path!(), "a_poller_runs_where_it_is_told", || {
        let cpu = core_affinity::get_core_ids().unwrap().last().unwrap().id as u32;
        let mut driver = driver_with(Poller { idle: 4, cpu: Some(cpu) });
        let (near, _far) = pair();
        driver.poll(near.as_raw_fd(), OUT, false, 1).unwrap();
        event(&mut driver);
        assert_eq!(pollers(), 1);
    });
}

#[test]
fn a_cpu_that_there_is_not_is_named_as_the_cause() {
    let config = Config { poller: Some(Poller { idle: 4, cpu: Some(4000) }), ..Config::default() };
    let error = Driver::<u32>::new(&config, CHOICE).err().unwrap();
    assert_eq!(error.errno(), libc::EINVAL);
    assert!(error.to_string().contains("CPU that the poller"), "{error}");
}

/// With io_uring_enter denied, any use of it would show. The poller, which idles for a minute,
/// starts what is queued and reports what comes of it.
#[test]
fn a_busy_poller_needs_no_system_call() {
    in_own_process(module_path!(), "a_busy_poller_needs_no_system_call", || {
        let config = Config { receive: true, ..Config::default() };
        let poller = Some(Poller { idle: 60_000, cpu: None });
        let mut driver = Driver::<u32>::new(&Config { poller, ..config }, CHOICE).unwrap();
        let (near, far) = pair();
        start_queued(&mut driver);
        deny(&[libc::SYS_io_uring_enter], libc::EPERM);
        driver.receive(near.as_raw_fd(), 1).unwrap();
        for round in 0..100 {
            driver.send(near.as_raw_fd(), vec![round; 100], 0, 2).unwrap();
            let Outcome::Send(Ok(100), _) = spin(&mut driver).outcome else { panic!() };
            let mut got = [0; 100];
            (&far).read_exact(&mut got).unwrap();
            std::io::Write::write_all(&mut &far, &got).unwrap();
            let Outcome::Receive(Ok(chunk)) = spin(&mut driver).outcome else { panic!() };
            assert_eq!(*chunk, [round; 100]);
        }
        // This ring cannot be closed in order any more.
        std::mem::forget(driver);
    });
}

fn spin(driver: &mut Driver<u32>) -> Event<u32> {
    let start = Instant::now();
    loop {
        driver.submit().unwrap();
        if let Some(event) = driver.next() {
            return event;
        }
        assert!(start.elapsed() < LIMIT, "no event");
    }
}

#[test]
fn a_sleeping_poller_is_woken() {
    let mut driver = driver_with(Poller { idle: 1, cpu: None });
    let (near, _far) = pair();
    for _ in 0..20 {
        let start = Instant::now();
        while !driver_sleeps() {
            assert!(start.elapsed() < LIMIT);
            thread::yield_now();
        }
        driver.poll(near.as_raw_fd(), OUT, false, 1).unwrap();
        assert!(matches!(event(&mut driver).outcome, Outcome::Poll(Ok(OUT))));
    }
}

/// Whether every poller of the process sleeps; nextest runs each test in a process of its own.
fn driver_sleeps() -> bool {
    fs::read_dir("/proc/self/task").unwrap().flatten().all(|task| {
        let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        !stat.contains("(iou-sqp") || stat.contains(") S ")
    })
}

#[test]
fn another_thread_goes_on_with_what_was_started() {
    let (near, mut far) = pair();
    let mut driver = driver();
    driver.receive(near.as_raw_fd(), 1).unwrap();
    std::io::Write::write_all(&mut far, b"before").unwrap();
    let smuggled = Smuggled((driver, near, far));
    thread::spawn(move || {
        let mut smuggled = smuggled;
        let whole: &mut Smuggled<_> = &mut smuggled;
        let (driver, _, far) = &mut whole.0;
        assert!(driver.is_usable());
        let Outcome::Receive(Ok(chunk)) = event(driver).outcome else { panic!() };
        assert_eq!(*chunk, *b"before");
        std::io::Write::write_all(far, b"after").unwrap();
        let Outcome::Receive(Ok(chunk)) = event(driver).outcome else { panic!() };
        assert_eq!(*chunk, *b"after");
        drop(chunk);
        assert_eq!(owners(driver.close()), [1]);
    })
    .join()
    .unwrap();
}

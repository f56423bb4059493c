//! Where io_uring is denied, and which driver is made then.

use std::thread;

use super::*;

/// Makes the system calls `denied` fail with `errno` on the calling thread.
pub(super) fn deny(denied: &[libc::c_long], errno: i32) {
    filter(denied, libc::SECCOMP_RET_ERRNO | errno as u32);
}

/// Has the calling thread's system calls `denied` answered by `action`: seccomp(2).
fn filter(denied: &[libc::c_long], action: u32) {
    let statement =
        |code: u32, jt: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf: 0, k };
    let load_number = statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0);
    let give = |k| statement(libc::BPF_RET | libc::BPF_K, 0, k);
    let mut program = vec![load_number];
    for (n, number) in denied.iter().enumerate() {
        let skip = (denied.len() - n) as u8;
        let test = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
        program.push(statement(test, skip, *number as u32));
    }
    program.push(give(libc::SECCOMP_RET_ALLOW));
    program.push(give(action));
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: `filter` and the program it points to live until the calls return.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let mode = libc::SECCOMP_MODE_FILTER;
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const filter), 0);
    }
}

/// Runs the body under such a filter. On a thread of its own, whose filter dies with it.
fn without<R: Send>(calls: &[libc::c_long], errno: i32, body: impl FnOnce() -> R + Send) -> R {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            deny(calls, errno);
            body()
        });
        thread.join().unwrap()
    })
}

fn make(choice: Choice) -> Result<Driver<u32>, SetupError> {
    Driver::new(&Config::default(), choice)
}

/// The error of a ring's set-up under such a filter.
fn denied(calls: &[libc::c_long], errno: i32) -> SetupError {
    without(calls, errno, || make(Choice::Uring).err().unwrap())
}

const ALL: [libc::c_long; 3] =
    [libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register];

#[test]
fn a_container_profile_that_denies() {
    let error = denied(&ALL, libc::EPERM);
    assert_eq!(error.errno(), libc::EPERM);
    let text = error.to_string();
    assert!(text.starts_with("io_uring_setup: Operation not permitted"), "{text}");
    for word in ["seccomp", "kernel.io_uring_disabled", "io_uring_setup", "allow"] {
        assert!(text.contains(word), "{word:?} is not in {text:?}");
    }
}

#[test]
fn a_sandbox_that_hides() {
    let error = denied(&ALL, libc::ENOSYS);
    assert_eq!(error.errno(), libc::ENOSYS);
    let text = error.to_string();
    assert!(text.contains("without io_uring") && text.contains("seccomp"), "{text}");
}

#[test]
fn a_profile_that_denies_half_of_it() {
    for (call, name) in [
        (libc::SYS_io_uring_enter, "io_uring_enter:"),
        (libc::SYS_io_uring_register, "io_uring_register("),
    ] {
        let error = denied(&[call], libc::EPERM);
        assert_eq!(error.errno(), libc::EPERM);
        assert!(error.to_string().starts_with(name), "{error}");
    }
}

#[test]
fn an_old_kernel() {
    let text = denied(&ALL, libc::EINVAL).to_string();
    assert!(text.contains("older than 6.1"), "{text}");
}

#[test]
fn a_failed_set_up_leaves_no_descriptor() {
    in_own_process(module_path!(), "a_failed_set_up_leaves_no_descriptor", || {
        let before = open_fds();
        for call in ALL {
            denied(&[call], libc::EPERM);
            without(&[call], libc::EPERM, || drop(make(Choice::Auto).unwrap()));
        }
        without(&[libc::SYS_epoll_ctl], libc::EPERM, || assert!(make(Choice::Epoll).is_err()));
        assert_eq!(open_fds(), before);
    });
}

#[test]
fn io_uring_is_preferred() {
    let driver = make(Choice::Auto).unwrap();
    assert_eq!(driver.name(), "uring");
    assert_eq!(driver.fallback(), None);
}

#[test]
fn epoll_is_taken_whatever_keeps_a_ring_from_working() {
    for errno in [libc::EPERM, libc::ENOSYS, libc::ENOMEM, libc::EINVAL, libc::EOPNOTSUPP] {
        for call in ALL {
            without(&[call], errno, || {
                let mut driver = make(Choice::Auto).unwrap();
                assert_eq!(driver.name(), "epoll");
                assert_eq!(driver.fallback().map(SetupError::errno), Some(errno));
                let (near, _far) = pair();
                driver.poll(near.as_raw_fd(), OUT, false, 1).unwrap();
                assert!(matches!(event(&mut driver).outcome, Outcome::Poll(Ok(OUT))));
            });
        }
    }
}

/// A system call that is neither made nor denied shows nothing, so here it ends the process.
#[test]
fn epoll_can_be_chosen_without_trying_a_ring() {
    in_own_process(module_path!(), "epoll_can_be_chosen_without_trying_a_ring", || {
        filter(&ALL, libc::SECCOMP_RET_KILL_PROCESS);
        let driver = make(Choice::Epoll).unwrap();
        assert_eq!(driver.name(), "epoll");
        assert_eq!(driver.fallback(), None);
    });
}

#[test]
fn lack_of_descriptors_is_no_reason_for_epoll() {
    in_own_process(module_path!(), "lack_of_descriptors_is_no_reason_for_epoll", || {
        // The ring's eventfd still fits.
        let next = std::fs::File::open("/dev/null").unwrap().as_raw_fd();
        set_file_limit(next as u64 + 1);
        for choice in [Choice::Auto, Choice::Uring, Choice::Epoll] {
            let error = make(choice).err().unwrap();
            assert_eq!(error.errno(), libc::EMFILE);
            assert!(error.to_string().contains("ulimit -n"), "{error}");
        }
    });
}

#[test]
fn choices_have_names() {
    for (name, choice) in Choice::NAMES {
        assert_eq!(name.parse(), Ok(choice));
    }
    assert_eq!("".parse::<Choice>(), Err(()));
    assert_eq!("Epoll".parse::<Choice>(), Err(()));
}

#[test]
fn odd_sizes_are_made_to_fit() {
    for (entries, cq_entries) in [(0, 0), (1, 1), (3, 5), (100, 7), (u32::MAX, u32::MAX / 2)] {
        let config = Config { entries, cq_entries, ..Config::default() };
        for choice in [Choice::Uring, Choice::Epoll] {
            let mut driver: Driver<u32> = Driver::new(&config, choice).unwrap();
            no_event(&mut driver);
        }
    }
}

//! Why a driver cannot be set up here, in words that say what to do about it.

use std::error::Error;
use std::fmt;
use std::fs;
use std::io;

const SYSCTL: &str = "/proc/sys/kernel/io_uring_disabled";

/// The driver could not be set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetupError {
    operation: &'static str,
    cause: Cause,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Cause {
    /// With what the sysctl kernel.io_uring_disabled said then: 0 all may, 1 a group, 2 nobody.
    Errno {
        errno: i32,
        disabled: Option<u8>,
    },
    MissingOp(Vec<&'static str>),
}

impl SetupError {
    pub(super) fn failed(operation: &'static str, error: &io::Error) -> Self {
        SetupError {
            operation,
            cause: Cause::Errno {
                errno: error.raw_os_error().unwrap_or(libc::EIO),
                disabled: fs::read_to_string(SYSCTL).ok().and_then(|text| text.trim().parse().ok()),
            },
        }
    }

    pub(super) fn missing_op(names: Vec<&'static str>) -> Self {
        SetupError {
            operation: "io_uring_register(IORING_REGISTER_PROBE)",
            cause: Cause::MissingOp(names),
        }
    }

    /// The error number of the failed call; `EOPNOTSUPP` where operations are missing.
    pub fn errno(&self) -> i32 {
        match self.cause {
            Cause::Errno { errno, .. } => errno,
            Cause::MissingOp(_) => libc::EOPNOTSUPP,
        }
    }

    pub(super) fn is_out_of_descriptors(&self) -> bool {
        matches!(self.errno(), libc::EMFILE | libc::ENFILE)
    }

    /// The operations that the kernel lacks, if that is the cause.
    pub fn missing_ops(&self) -> &[&'static str] {
        match &self.cause {
            Cause::MissingOp(names) => names,
            Cause::Errno { .. } => &[],
        }
    }
}

impl fmt::Display for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            Cause::MissingOp(names) => write!(
                f,
                "{}: the kernel lacks the operations {}: use Linux 6.1 or newer, built with \
                 networking",
                self.operation,
                names.join(", ")
            ),
            Cause::Errno { errno, disabled } => write!(
                f,
                "{}: {}: {}",
                self.operation,
                io::Error::from_raw_os_error(*errno),
                match self.operation.starts_with("io_uring") {
                    true => advice(*errno, *disabled, self.operation.contains("SQPOLL")),
                    false => general_advice(*errno),
                }
            ),
        }
    }
}

impl Error for SetupError {}

fn advice(errno: i32, disabled: Option<u8>, poller: bool) -> &'static str {
    match (errno, disabled) {
        (libc::EPERM, Some(2)) => {
            "the sysctl kernel.io_uring_disabled is 2, which denies io_uring to everybody: set it \
             to 0"
        }
        (libc::EPERM, Some(1)) => {
            "the sysctl kernel.io_uring_disabled is 1 and this process is not in the group that \
             kernel.io_uring_group names, or a seccomp profile denies io_uring: set the sysctl to \
             0 or join the group, or allow io_uring_setup, io_uring_enter and io_uring_register in \
             the profile"
        }
        (libc::EPERM | libc::EACCES, _) => {
            "a seccomp profile (the default of Docker and Kubernetes) or security module denies \
             io_uring: allow io_uring_setup, io_uring_enter and io_uring_register in it (the \
             sysctl kernel.io_uring_disabled must be 0 too)"
        }
        (libc::ENOSYS, _) => {
            "the kernel is built without io_uring, or a sandbox (seccomp profile, gVisor) hides \
             it: use Linux 6.1 or newer with CONFIG_IO_URING, or allow io_uring_setup, \
             io_uring_enter and io_uring_register in the sandbox"
        }
        (libc::ENOMEM, _) => {
            "the memory limit of the control group, or the limit on locked memory, is too low for \
             the ring: raise it (ulimit -l, LimitMEMLOCK=)"
        }
        (libc::EINVAL, _) if poller => {
            "this process may not use the CPU that the poller is to run on, or the kernel is older \
             than 6.1"
        }
        (libc::EINVAL, _) => {
            "the kernel is older than 6.1, which this driver needs: use a newer kernel"
        }
        _ => general_advice(errno),
    }
}

fn general_advice(errno: i32) -> &'static str {
    match errno {
        libc::EMFILE | libc::ENFILE => {
            "too many open files: raise the limit (ulimit -n, LimitNOFILE=)"
        }
        libc::ENOMEM => "the kernel or the control group is out of memory",
        _ => "the kernel does not let this process wait for events",
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn text(errno: i32, disabled: Option<u8>) -> String {
        let cause = Cause::Errno { errno, disabled };
        let operation = "io_uring_setup";
        SetupError { operation, cause }.to_string()
    }

    #[test]
    fn messages_name_operation_cause_and_remedy() {
        for (errno, disabled, words) in [
            (libc::EPERM, Some(2), ["kernel.io_uring_disabled is 2", "set it to 0"]),
            (libc::EPERM, Some(1), ["kernel.io_uring_group", "join the group"]),
            (libc::EPERM, Some(0), ["seccomp", "allow io_uring_setup"]),
            (libc::EPERM, None, ["seccomp", "kernel.io_uring_disabled"]),
            (libc::ENOSYS, None, ["without io_uring", "seccomp"]),
            (libc::ENOMEM, None, ["locked memory", "ulimit -l"]),
            (libc::EINVAL, None, ["older than 6.1", "newer kernel"]),
            (libc::EMFILE, None, ["too many open files", "ulimit -n"]),
        ] {
            let text = text(errno, disabled);
            assert!(text.starts_with("io_uring_setup: "), "{text}");
            for word in words {
                assert!(text.contains(word), "{word:?} is not in {text:?}");
            }
        }
    }

    #[test]
    fn what_is_not_about_io_uring_does_not_mention_it() {
        for errno in [libc::ENOMEM, libc::EMFILE, libc::EPERM] {
            let text = SetupError::failed("epoll_create1", &io::Error::from_raw_os_error(errno))
                .to_string();
            assert!(text.starts_with("epoll_create1: ") && !text.contains("ring"), "{text}");
        }
    }

    #[test]
    fn missing_operations_are_listed() {
        let error = SetupError::missing_op(vec!["ACCEPT", "SEND"]);
        assert!(error.to_string().contains("ACCEPT, SEND"), "{error}");
        assert_eq!(error.errno(), libc::EOPNOTSUPP);
        assert_eq!(error.missing_ops(), ["ACCEPT", "SEND"]);
    }
}

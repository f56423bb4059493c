//! Direct calls on pipes and what stands in their place.

use std::fs::File;
use std::io::{IoSlice, PipeReader, PipeWriter};
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;

use super::*;
use crate::driver::pipe::*;

fn nonblocking_pipe() -> (PipeReader, PipeWriter) {
    let (reader, writer) = io::pipe().unwrap();
    set_nonblocking(reader.as_raw_fd()).unwrap();
    set_nonblocking(writer.as_raw_fd()).unwrap();
    (reader, writer)
}

#[test]
fn calls_do_not_wait() {
    let (reader, writer) = nonblocking_pipe();
    let (from, to) = (reader.as_raw_fd(), writer.as_raw_fd());
    assert_errno(read(from, &mut [0; 8]), libc::EAGAIN);
    assert_eq!(write(to, b"hello").unwrap(), 5);
    let mut buf = [0; 8];
    assert_eq!(read(from, &mut buf).unwrap(), 5);
    assert_eq!(&buf[..5], b"hello");
    while write(to, &[0; 1 << 16]).is_ok() {}
    assert_errno(write(to, b"x"), libc::EAGAIN);
    assert_errno(write_vectored(to, &[IoSlice::new(b"x")]), libc::EAGAIN);
    drop(reader);
    assert_errno(write(to, b"no reader"), libc::EPIPE);
}

#[test]
fn the_end_of_the_writer_is_a_read_of_nothing() {
    let (reader, writer) = nonblocking_pipe();
    drop(writer);
    assert_eq!(read(reader.as_raw_fd(), &mut [0; 8]).unwrap(), 0);
}

#[test]
fn parts_are_written_in_order_and_at_most_1024() {
    let (mut reader, writer) = nonblocking_pipe();
    let data: Vec<u8> = (0..3000u32).map(|n| n as u8).collect();
    let parts: Vec<IoSlice<'_>> = data.chunks(2).map(IoSlice::new).collect();
    assert_eq!(write_vectored(writer.as_raw_fd(), &parts).unwrap(), 2048);
    assert_eq!(write_vectored(writer.as_raw_fd(), &[]).unwrap(), 0);
    drop(writer);
    let mut got = Vec::new();
    reader.read_to_end(&mut got).unwrap();
    assert_eq!(got, data[..2048]);
}

#[test]
fn kinds_of_files_are_told_apart() {
    let (pipe, _writer) = io::pipe().unwrap();
    let (socket, _peer) = UnixStream::pair().unwrap();
    let device = File::open("/dev/null").unwrap();
    let directory = File::open("/").unwrap();
    let kind = |fd: RawFd| FileKind::of(fd).unwrap();
    assert_eq!(kind(pipe.as_raw_fd()), FileKind::Pipe);
    assert_eq!(kind(socket.as_raw_fd()), FileKind::Socket);
    assert_eq!(kind(device.as_raw_fd()), FileKind::Device);
    assert_eq!(kind(directory.as_raw_fd()), FileKind::Other);
}

#[test]
fn a_pipe_holds_as_much_as_it_says() {
    let (_reader, writer) = nonblocking_pipe();
    let room = capacity(writer.as_raw_fd()).unwrap();
    assert_eq!(write(writer.as_raw_fd(), &vec![0; 2 * room]).unwrap(), room);
    let (socket, _peer) = UnixStream::pair().unwrap();
    assert_errno(capacity(socket.as_raw_fd()), libc::EBADF);
}

#[test]
fn a_bad_descriptor_is_an_error() {
    assert_errno(FileKind::of(-1), libc::EBADF);
    assert_errno(set_nonblocking(-1), libc::EBADF);
    assert_errno(read(-1, &mut [0; 1]), libc::EBADF);
    assert_errno(write(-1, b"x"), libc::EBADF);
}

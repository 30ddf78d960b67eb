//! Over a stream socket: frames with their length in front, written through a buffer that is flushed when it is full or
//! when there is nothing more to write.

use crate::Error;
use crate::job::{Job, Load, Side};
use crate::load::{Answerer, Asker, Figure, Sink, Source, relax};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream as Blocking;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader, BufWriter};
use tokio::net::UnixStream;

const BUFFER_BYTES: usize = 64 << 10;

pub(crate) fn run(job: &Job) -> Result<Option<Figure>, Error> {
    // The parent gives it in the place of standard input.
    let stream = Blocking::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    stream.set_nonblocking(true)?;
    if job.case.load.is_polled() {
        return polled(job, &stream);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    runtime.block_on(asleep(job, stream))
}

async fn asleep(job: &Job, stream: Blocking) -> Result<Option<Figure>, Error> {
    let (from, to) = UnixStream::from_std(stream)?.into_split();
    let mut from = BufReader::with_capacity(BUFFER_BYTES, from);
    let mut to = BufWriter::with_capacity(BUFFER_BYTES, to);
    let mut frame = Vec::new();
    match (job.case.load, job.side) {
        (Load::Flow { .. }, Side::Source) => {
            let mut source = Source::new(job);
            while !source.done() {
                write(&mut to, source.next()).await?;
            }
            to.flush().await?;
            Ok(None)
        }
        (load @ Load::Flow { .. }, Side::Sink) => {
            let mut sink = Sink::new(load);
            loop {
                read(&mut from, &mut frame).await?;
                if sink.take(&frame)? {
                    return Ok(Some(sink.figure()?));
                }
            }
        }
        (Load::RoundTrip { .. }, Side::Source) => {
            let mut asker = Asker::new(job);
            loop {
                write(&mut to, asker.ask()).await?;
                to.flush().await?;
                read(&mut from, &mut frame).await?;
                if asker.answered(&frame)? {
                    return Ok(Some(asker.figure()?));
                }
            }
        }
        (load @ Load::RoundTrip { .. }, Side::Sink) => {
            let mut answerer = Answerer::new(load);
            loop {
                read(&mut from, &mut frame).await?;
                let (answer, last) = answerer.answer(&frame)?;
                write(&mut to, answer).await?;
                to.flush().await?;
                if last {
                    return Ok(None);
                }
            }
        }
    }
}

async fn write(to: &mut (impl AsyncWriteExt + Unpin), message: &[u8]) -> Result<(), Error> {
    to.write_u32_le(u32::try_from(message.len())?).await?;
    to.write_all(message).await?;
    Ok(())
}

async fn read(from: &mut (impl AsyncReadExt + Unpin), frame: &mut Vec<u8>) -> Result<(), Error> {
    let length = from.read_u32_le().await? as usize;
    frame.resize(length, 0);
    from.read_exact(frame).await?;
    Ok(())
}

fn polled(job: &Job, stream: &Blocking) -> Result<Option<Figure>, Error> {
    let mut frame = Vec::new();
    match job.side {
        Side::Source => {
            let mut asker = Asker::new(job);
            loop {
                push(stream, asker.ask(), &mut frame)?;
                let answer = pull(stream, &mut frame)?;
                if asker.answered(answer)? {
                    return Ok(Some(asker.figure()?));
                }
            }
        }
        Side::Sink => {
            let mut answerer = Answerer::new(job.case.load);
            let mut out = Vec::new();
            loop {
                let (answer, last) = answerer.answer(pull(stream, &mut frame)?)?;
                push(stream, answer, &mut out)?;
                if last {
                    return Ok(None);
                }
            }
        }
    }
}

/// Writes a frame, for which there always is room, in one call.
fn push(mut stream: &Blocking, message: &[u8], frame: &mut Vec<u8>) -> Result<(), Error> {
    frame.clear();
    frame.extend_from_slice(&u32::try_from(message.len())?.to_le_bytes());
    frame.extend_from_slice(message);
    stream.write_all(frame)?;
    Ok(())
}

/// Looks for a frame without end. A frame is written in one call and is far smaller than the socket's buffer, so that it
/// is there whole or not at all.
fn pull<'a>(mut stream: &Blocking, frame: &'a mut Vec<u8>) -> Result<&'a [u8], Error> {
    frame.resize(4096, 0);
    let mut looks = 0;
    let bytes = loop {
        match stream.read(frame) {
            Ok(bytes) => break bytes,
            Err(error) if error.kind() == ErrorKind::WouldBlock => relax(&mut looks),
            Err(error) => return Err(error.into()),
        }
    };
    let length: [u8; 4] = frame[..4].try_into()?;
    if bytes != 4 + u32::from_le_bytes(length) as usize {
        return Err("a part of a frame".into());
    }
    Ok(&frame[4..bytes])
}

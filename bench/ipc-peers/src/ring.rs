//! Over Maree-DB's rings, with the loops of gatewayd and consensusd: a tokio thread that sleeps on its doorbell, a head
//! that moves with each message, a tail that moves with each batch.

use crate::Error;
use crate::job::{Job, Load, Side, Transport};
use crate::load::{Answerer, Asker, Figure, Sink, Source, relax};
use mareedb_ipc::{Bell, Inheritance, Lane, Receiver, Role, Sender, Waiter};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Both ends of a lane, and what wakes this process.
struct Link {
    to: Sender,
    from: Receiver,
    bell: AsyncFd<Bell>,
    polled: bool,
}

pub(crate) fn run(job: &Job) -> Result<Option<Figure>, Error> {
    let mut inheritance = Inheritance::from_env()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    runtime.block_on(async {
        let (waiter, other) = match job.side {
            Side::Source => (Waiter::Gateway, Role::Consensus),
            Side::Sink => (Waiter::Consensus, Role::Gateway),
        };
        let to = inheritance.sender(other, Lane::Client);
        let from = inheritance.receiver(other, Lane::Client);
        let bell = inheritance.bell(waiter);
        inheritance.ring_all_bells();
        // SAFETY: the bell owns its descriptor and neither replaces nor closes it while `AsyncFd` owns the bell.
        let bell = unsafe { AsyncFd::register_with_interest(bell, Interest::READABLE) }?;
        let mut link = Link {
            to,
            from,
            bell,
            polled: job.case.load.is_polled(),
        };
        let each = job.case.transport == Transport::RingEach;
        match (job.case.load, job.side) {
            (Load::Flow { .. }, Side::Source) => link.send(Source::new(job), each).await,
            (load @ Load::Flow { .. }, Side::Sink) => link.receive(Sink::new(load)).await,
            (Load::RoundTrip { .. }, Side::Source) => link.ask(Asker::new(job)).await,
            (load @ Load::RoundTrip { .. }, Side::Sink) => link.answer(Answerer::new(load)).await,
        }
    })
}

impl Link {
    async fn rung(&self) -> Result<(), Error> {
        let mut ready = self.bell.readable().await?;
        self.bell.get_ref().drain();
        ready.clear_ready();
        Ok(())
    }

    async fn send(&mut self, mut source: Source, each: bool) -> Result<Option<Figure>, Error> {
        while !source.done() {
            let mut seen = self.to.head()?;
            loop {
                let message = source.next();
                while self.to.try_send_encoded(message)?.is_none() {
                    if self.to.arm_progress(seen)? {
                        self.rung().await?;
                    }
                    seen = self.to.head()?;
                }
                if each {
                    self.to.publish();
                }
                if source.done() || source.begins_batch() {
                    break;
                }
            }
            self.to.publish();
        }
        Ok(None)
    }

    async fn receive(&mut self, mut sink: Sink) -> Result<Option<Figure>, Error> {
        loop {
            while let Some((message, end)) = self.from.try_recv_encoded()? {
                let last = sink.take(&message)?;
                self.from.release(end);
                if last {
                    return Ok(Some(sink.figure()?));
                }
            }
            if self.from.arm()? {
                self.rung().await?;
            }
        }
    }

    /// Sends a message for which there is room.
    fn push(&mut self, message: &[u8]) -> Result<(), Error> {
        self.to
            .try_send_encoded(message)?
            .ok_or("one message has no room")?;
        self.to.publish();
        Ok(())
    }

    /// Waits for a message and hands it over; released as the daemons do, once it is handled.
    async fn pull<T>(&mut self, take: impl FnOnce(&[u8]) -> Result<T, String>) -> Result<T, Error> {
        let mut looks = 0;
        loop {
            if let Some((message, end)) = self.from.try_recv_encoded()? {
                let taken = take(&message)?;
                self.from.release(end);
                return Ok(taken);
            }
            if self.polled {
                relax(&mut looks);
            } else if self.from.arm()? {
                self.rung().await?;
            }
        }
    }

    async fn ask(&mut self, mut asker: Asker) -> Result<Option<Figure>, Error> {
        loop {
            self.push(asker.ask())?;
            if self.pull(|message| asker.answered(message)).await? {
                return Ok(Some(asker.figure()?));
            }
        }
    }

    async fn answer(&mut self, mut answerer: Answerer) -> Result<Option<Figure>, Error> {
        loop {
            let mut answer = Vec::new();
            let last = self
                .pull(|message| {
                    let (bytes, last) = answerer.answer(message)?;
                    answer.extend_from_slice(bytes);
                    Ok(last)
                })
                .await?;
            self.push(&answer)?;
            if last {
                return Ok(None);
            }
        }
    }
}

//! Over iceoryx2: publish and subscribe with its defaults, but for what makes it carry a stream: nothing is overwritten, the
//! publisher waits for room, and as many samples may be in flight as a ring of Maree-DB holds. Sleepers wait for an event.

use crate::Error;
use crate::job::{Job, Load, Side, Transport};
use crate::load::{Answerer, Asker, Figure, Sink, Source, relax};
use iceoryx2::port::listener::Listener;
use iceoryx2::port::notifier::Notifier;
use iceoryx2::port::publisher::Publisher;
use iceoryx2::port::subscriber::Subscriber;
use iceoryx2::prelude::*;
use std::time::{Duration, Instant};

/// The other side is there by then.
const LIMIT: Duration = Duration::from_secs(10);

/// A sleeper looks again after so long: in one of some hundred runs both sides waited for ever.
const NAP: Duration = Duration::from_millis(100);

type Service = ipc::Service;

/// One direction's sending end.
struct Out {
    publisher: Publisher<Service, [u8], ()>,
    notifier: Option<Notifier<Service>>,
    bytes: usize,
    subscribers: Box<dyn Fn() -> usize>,
}

/// One direction's receiving end.
struct In {
    subscriber: Subscriber<Service, [u8], ()>,
    listener: Option<Listener<Service>>,
}

pub(crate) fn run(job: &Job) -> Result<Option<Figure>, Error> {
    set_log_level(LogLevel::Error);
    let node = NodeBuilder::new().create::<Service>()?;
    let load = job.case.load;
    match (load, job.side) {
        (Load::Flow { .. }, Side::Source) => {
            let to = Out::new(&node, job, "requests")?;
            to.meet(1)?;
            to.send(Source::new(job))?;
            // What is in flight lies in this process's memory.
            to.meet(0)?;
            Ok(None)
        }
        (Load::Flow { .. }, Side::Sink) => {
            In::new(&node, job, "requests")?.receive(Sink::new(load))
        }
        (Load::RoundTrip { .. }, Side::Source) => {
            let from = In::new(&node, job, "answers")?;
            let to = Out::new(&node, job, "requests")?;
            to.meet(1)?;
            let mut asker = Asker::new(job);
            loop {
                to.push(asker.ask())?;
                to.notify()?;
                if from.pull(|message| asker.answered(message))? {
                    return Ok(Some(asker.figure()?));
                }
            }
        }
        (Load::RoundTrip { .. }, Side::Sink) => {
            let from = In::new(&node, job, "requests")?;
            let to = Out::new(&node, job, "answers")?;
            to.meet(1)?;
            let mut answerer = Answerer::new(load);
            loop {
                let last = from.pull(|message| {
                    let (answer, last) = answerer.answer(message)?;
                    to.push(answer).map_err(|error| error.to_string())?;
                    Ok(last)
                })?;
                to.notify()?;
                if last {
                    return to.meet(0).map(|()| None);
                }
            }
        }
    }
}

impl Out {
    fn new(node: &Node<Service>, job: &Job, what: &str) -> Result<Out, Error> {
        let load = job.case.load;
        let service = samples(node, job, what)?;
        let publisher = service
            .publisher_builder()
            .initial_max_slice_len(load.bytes())
            .backpressure_strategy(BackpressureStrategy::RetryUntilDelivered)
            .create()?;
        let notifier = match job.case.transport {
            Transport::IceoryxEvent => Some(events(node, job, what)?.notifier_builder().create()?),
            _ => None,
        };
        Ok(Out {
            publisher,
            notifier,
            bytes: load.bytes(),
            subscribers: Box::new(move || service.dynamic_config().number_of_subscribers()),
        })
    }

    /// Waits until so many subscribers are there.
    fn meet(&self, count: usize) -> Result<(), Error> {
        let end = Instant::now() + LIMIT;
        while (self.subscribers)() != count {
            if Instant::now() > end {
                return Err("the other side does not come, or does not go".into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Sends a message; again, if nobody got it: a subscriber is counted a moment before it can be connected to.
    fn push(&self, message: &[u8]) -> Result<(), Error> {
        let mut end = None;
        loop {
            let sample = self.publisher.loan_slice_uninit(self.bytes)?;
            if sample.write_from_slice(message).send()? == 1 {
                return Ok(());
            }
            let now = Instant::now();
            if now > *end.get_or_insert(now + LIMIT) {
                return Err("a message reaches nobody".into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn notify(&self) -> Result<(), Error> {
        if let Some(notifier) = &self.notifier {
            notifier.notify()?;
        }
        Ok(())
    }

    fn send(&self, mut source: Source) -> Result<(), Error> {
        while !source.done() {
            self.push(source.next())?;
            if source.done() || source.begins_batch() {
                self.notify()?;
            }
        }
        Ok(())
    }
}

impl In {
    fn new(node: &Node<Service>, job: &Job, what: &str) -> Result<In, Error> {
        let listener = match job.case.transport {
            Transport::IceoryxEvent => Some(events(node, job, what)?.listener_builder().create()?),
            _ => None,
        };
        let subscriber = samples(node, job, what)?.subscriber_builder().create()?;
        Ok(In {
            subscriber,
            listener,
        })
    }

    /// After nothing was there: sleeps, or looks again.
    fn wait(&self, looks: &mut u32) -> Result<(), Error> {
        match &self.listener {
            Some(listener) => {
                listener.timed_wait(|_| {}, NAP)?;
            }
            None => relax(looks),
        }
        Ok(())
    }

    fn receive(&self, mut sink: Sink) -> Result<Option<Figure>, Error> {
        let mut looks = 0;
        loop {
            while let Some(sample) = self.subscriber.receive()? {
                if sink.take(sample.payload())? {
                    return Ok(Some(sink.figure()?));
                }
            }
            self.wait(&mut looks)?;
        }
    }

    fn pull<T>(&self, take: impl FnOnce(&[u8]) -> Result<T, String>) -> Result<T, Error> {
        let mut looks = 0;
        loop {
            if let Some(sample) = self.subscriber.receive()? {
                return Ok(take(sample.payload())?);
            }
            self.wait(&mut looks)?;
        }
    }
}

type Samples = iceoryx2::service::port_factory::publish_subscribe::PortFactory<Service, [u8], ()>;
type Events = iceoryx2::service::port_factory::event::PortFactory<Service>;

fn samples(node: &Node<Service>, job: &Job, what: &str) -> Result<Samples, Error> {
    let name = ServiceName::new(&format!("{}/{what}", job.name))?;
    Ok(node
        .service_builder(&name)
        .publish_subscribe::<[u8]>()
        .enable_safe_overflow(false)
        .subscriber_max_buffer_size(job.case.load.flight())
        .history_size(0)
        .max_publishers(1)
        .max_subscribers(1)
        .open_or_create()?)
}

fn events(node: &Node<Service>, job: &Job, what: &str) -> Result<Events, Error> {
    let name = ServiceName::new(&format!("{}/{what}", job.name))?;
    Ok(node.service_builder(&name).event().open_or_create()?)
}

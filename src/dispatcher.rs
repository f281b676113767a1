//! The thread that tells the application's event handler what has happened: never the checker's, and
//! never one that waits for a connection.

use std::convert::Infallible;
use std::io;
use std::thread;

use crossbeam_channel::{Receiver, select};

use crate::event::{Event, EventHandler};
use crate::panics::catch_panic;

/// The name of the thread. Linux shows the first 15 characters of a thread's name.
const THREAD_NAME: &str = "peers-events";

/// Starts the thread. It ends when the other end of `stopped` is dropped, once the handler has been
/// told what had happened by then.
pub(crate) fn start(
    handler: Box<EventHandler>,
    events: Receiver<Event>,
    stopped: Receiver<Infallible>,
) -> io::Result<()> {
    let run = move || {
        loop {
            select! {
                recv(events) -> event => match event {
                    // One that panics breaks nothing, and is told the next one.
                    Ok(event) => drop(catch_panic(|| handler(&event))),
                    Err(_) => break,
                },
                recv(stopped) -> _ => break,
            }
        }
        for event in events.try_iter() {
            let _ = catch_panic(|| handler(&event));
        }
        // Its destructor is the application's as well.
        let _ = catch_panic(|| drop(handler));
    };
    thread::Builder::new().name(THREAD_NAME.to_owned()).spawn(run).map(drop)
}

//! The thread that calls the application's event handler. The handler never runs on the checker's
//! thread, and never on a thread that waits for a connection.

use std::convert::Infallible;
use std::io;
use std::thread;

use crossbeam_channel::{Receiver, select};

use crate::events::{Event, EventHandler};
use crate::panics::catch_panic;

/// The name of the thread. Linux shows the first 15 characters of a thread's name.
const THREAD_NAME: &str = "peers-events";

/// Starts the thread. The thread ends when the other end of `stopped` is dropped, after the handler
/// has received all events that were queued by then.
pub(crate) fn start(
    handler: Box<EventHandler>,
    events: Receiver<Event>,
    stopped: Receiver<Infallible>,
) -> io::Result<()> {
    let run = move || {
        loop {
            select! {
                recv(events) -> event => match event {
                    // A handler that panics breaks nothing, and still receives the next event.
                    Ok(event) => drop(catch_panic(|| handler(&event))),
                    Err(_) => break,
                },
                recv(stopped) -> _ => break,
            }
        }
        for event in events.try_iter() {
            let _ = catch_panic(|| handler(&event));
        }
        // The handler's destructor is user code as well.
        let _ = catch_panic(|| drop(handler));
    };
    thread::Builder::new().name(THREAD_NAME.to_owned()).spawn(run).map(drop)
}

//! SIGINT and SIGTERM become a flag that everything watches.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// A flag that becomes true at the first SIGINT or SIGTERM. Must be called within a runtime, before anything that should stop cleanly starts.
///
/// # Errors
/// When the system refuses to install a handler.
pub fn shutdown() -> std::io::Result<(watch::Sender<bool>, watch::Receiver<bool>)> {
    let (sender, receiver) = watch::channel(false);
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = sender.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        tracing::info!("stopping");
        stop.send_replace(true);
    });
    Ok((sender, receiver))
}

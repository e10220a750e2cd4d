//! A connection's bytes arrive late, or end it, as the plan in force says. What is late does not hold up what comes behind it.

use crate::current;
use holdfast_config::Span;
use holdfast_types::prng::mix;
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// Bytes taken at a time, and parts that wait at the most.
const PART_BYTES: usize = 64 << 10;
const PARTS_MAX: usize = 256;

/// Parts that arrived in this process, of all connections.
static ARRIVED: AtomicU64 = AtomicU64::new(0);

/// The reading half of a connection.
pub struct Late<R> {
    inner: R,
    waiting: VecDeque<(Instant, Vec<u8>)>,
    timer: Pin<Box<Sleep>>,
    /// What comes after all that waits.
    end: Option<Option<io::ErrorKind>>,
}

/// Makes a reading half do what the plan says.
pub fn late<R>(inner: R) -> Late<R> {
    Late { inner, waiting: VecDeque::new(), timer: Box::pin(sleep_until(Instant::now())), end: None }
}

impl<R: AsyncRead + Unpin> Late<R> {
    /// Takes whatever has arrived.
    fn take(&mut self, context: &mut Context<'_>) {
        while self.end.is_none() && self.waiting.len() < PARTS_MAX {
            let mut part = vec![0; PART_BYTES];
            let mut buffer = ReadBuf::new(&mut part);
            match Pin::new(&mut self.inner).poll_read(context, &mut buffer) {
                Poll::Pending => return,
                Poll::Ready(Err(error)) => self.end = Some(Some(error.kind())),
                Poll::Ready(Ok(())) if buffer.filled().is_empty() => self.end = Some(None),
                Poll::Ready(Ok(())) => {
                    let length = buffer.filled().len();
                    part.truncate(length);
                    let plan = current();
                    let number = ARRIVED.fetch_add(1, Ordering::Relaxed);
                    let drawn = (mix(plan.seed ^ mix(number)) >> 11) as f64 / (1u64 << 53) as f64;
                    if drawn < plan.connection.drop {
                        self.end = Some(Some(io::ErrorKind::ConnectionReset));
                    } else {
                        let delay = plan.connection.delay.map_or_else(Default::default, |Span(delay)| delay);
                        self.waiting.push_back((Instant::now() + delay, part));
                    }
                }
            }
        }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Late<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.take(context);
        let Some((due, part)) = self.waiting.front_mut() else {
            return match self.end {
                None => Poll::Pending,
                Some(None) => Poll::Ready(Ok(())),
                Some(Some(kind)) => Poll::Ready(Err(kind.into())),
            };
        };
        let due = *due;
        if due > Instant::now() {
            self.timer.as_mut().reset(due);
            if self.timer.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            return self.poll_read(context, buffer);
        }
        let length = part.len().min(buffer.remaining());
        buffer.put_slice(&part[..length]);
        part.drain(..length);
        if part.is_empty() {
            self.waiting.pop_front();
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn nothing_is_lost_or_reordered_and_the_end_comes_last() {
        let (mut sender, receiver) = tokio::io::duplex(1 << 20);
        let mut receiver = late(receiver);
        let sent: Vec<u8> = (0..300_000u32).map(|n| ((n * 7) >> 3) as u8).collect();
        sender.write_all(&sent).await.expect("fits");
        drop(sender);
        let mut found = Vec::new();
        receiver.read_to_end(&mut found).await.expect("ends well");
        assert!(found == sent);
    }
}

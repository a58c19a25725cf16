//! A stream whose incoming bytes go through the filter.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_io::{AsyncRead, AsyncWrite};

use crate::broker::readable::frames::Filter;

/// Says what a stream below the filter can do.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Duplex for S {}

/// Bytes read at once at most.
const CHUNK: usize = 64 * 1024;

pub(super) struct Readable<S> {
    inner: S,
    filter: Filter,
    chunk: Box<[u8]>,
    /// Filtered, and not read by the library yet; the first `place` bytes are.
    out: Vec<u8>,
    place: usize,
}

impl<S: Duplex> Readable<S> {
    pub(super) fn new(inner: S, filter: Filter) -> Self {
        Self { inner, filter, chunk: vec![0; CHUNK].into(), out: Vec::new(), place: 0 }
    }
}

impl<S: Duplex> AsyncRead for Readable<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        loop {
            let waiting = this.out.get(this.place..).unwrap_or_default();
            if !waiting.is_empty() {
                let count = waiting.len().min(buffer.len());
                if let (Some(to), Some(from)) = (buffer.get_mut(..count), waiting.get(..count)) {
                    to.copy_from_slice(from);
                }
                this.place += count;
                return Poll::Ready(Ok(count));
            }
            this.out.clear();
            this.place = 0;
            match ready!(Pin::new(&mut this.inner).poll_read(cx, &mut this.chunk))? {
                0 => {
                    this.filter.end(&mut this.out);
                    if this.out.is_empty() {
                        return Poll::Ready(Ok(0));
                    }
                }
                count => this.filter.take(this.chunk.get(..count).unwrap_or_default(), &mut this.out),
            }
        }
    }
}

impl<S: Duplex> AsyncWrite for Readable<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, buffer)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(cx, buffers)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_close(cx)
    }
}

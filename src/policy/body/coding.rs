//! Undoes the `content_encoding` of a body. What is decoded may not be longer than a body may be, and no decoder is given more
//! to decode or more memory than that takes.

use std::io::{self, Read};

use bytes::Bytes;
use flate2::bufread::MultiGzDecoder;
use flate2::{Decompress, FlushDecompress, Status};
use ruzstd::decoding::StreamingDecoder;

use crate::model::cause::cut;
use crate::policy::body::fault::{Fault, SHOWN_BYTES};

/// The largest window of a Zstandard frame: what RFC 8878, 3.1.1.1.2, asks every decoder to support.
const LARGEST_WINDOW: u64 = 8 << 20;
/// Bytes decoded at once.
const CHUNK: usize = 32 * 1024;
/// Begins a Zstandard frame, and sixteen numbers that begin frames to be skipped: RFC 8878, 3.1.1 and 3.1.2.
const ZSTD_FRAME: u32 = 0xfd2f_b528;
const ZSTD_SKIPPED: std::ops::RangeInclusive<u32> = 0x184d_2a50..=0x184d_2a5f;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Coding {
    /// The bytes are the content. Kombu, Celery and Spring AMQP name a charset here: UTF-8, or none.
    Plain,
    Gzip,
    Deflate,
    Zstd,
}

impl Coding {
    fn of(name: &str) -> Option<Self> {
        Some(match name.trim().to_ascii_lowercase().as_str() {
            "" | "identity" | "utf-8" | "utf8" | "us-ascii" | "ascii" | "binary" | "7bit" | "8bit" => Self::Plain,
            "gzip" | "x-gzip" => Self::Gzip,
            "deflate" => Self::Deflate,
            "zstd" => Self::Zstd,
            _ => return None,
        })
    }
}

/// Returns whether a body with this `content_encoding` is its content.
pub(super) fn is_plain(name: &str) -> bool {
    Coding::of(name) == Some(Coding::Plain)
}

/// Returns the bytes as they were before they were encoded.
///
/// # Errors
/// For an encoding that is not known, for bytes that are not so encoded, and where more than `most` bytes come out.
pub(super) fn decoded(name: Option<&str>, bytes: &Bytes, most: u64) -> Result<Bytes, Fault> {
    let name = name.unwrap_or_default();
    let shown = cut(name.to_owned(), SHOWN_BYTES);
    let Some(coding) = Coding::of(name) else {
        return Err(Fault::Encoding(format!(
            "content_encoding is {shown:?}; expected \"gzip\", \"deflate\" or \"zstd\", or for what is not compressed none, \
             \"identity\", \"utf-8\", \"us-ascii\" or \"binary\""
        )));
    };
    let decoded = match coding {
        Coding::Plain => return Ok(bytes.clone()),
        Coding::Gzip => read_within(MultiGzDecoder::new(&bytes[..]), most),
        Coding::Deflate => deflate(bytes, most),
        Coding::Zstd => zstd(bytes, most),
    };
    match decoded {
        Ok(Some(decoded)) => Ok(decoded.into()),
        Ok(None) => Err(Fault::TooLarge(format!("the body has more than {most} bytes once its {shown} is decoded"))),
        Err(error) => Err(Fault::Encoding(format!("content_encoding is {shown:?}, and the body is not: {error}"))),
    }
}

/// Reads all; `None` where that is more than `most` bytes.
fn read_within(mut source: impl Read, most: u64) -> io::Result<Option<Vec<u8>>> {
    let mut read = Vec::new();
    source.by_ref().take(most.saturating_add(1)).read_to_end(&mut read)?;
    Ok(Some(read).filter(|read| read.len() as u64 <= most))
}

/// Undoes `deflate`: by RFC 9110 that is zlib's format, and some programs leave out its head and its checksum.
fn deflate(bytes: &[u8], most: u64) -> io::Result<Option<Vec<u8>>> {
    inflated(bytes, true, most).or_else(|error| inflated(bytes, false, most).map_err(|_| error))
}

fn inflated(bytes: &[u8], has_head: bool, most: u64) -> io::Result<Option<Vec<u8>>> {
    let mut decoder = Decompress::new(has_head);
    let (mut all, mut rest, mut chunk) = (Vec::new(), bytes, vec![0; CHUNK]);
    loop {
        let (read, written) = (decoder.total_in(), decoder.total_out());
        let status = decoder.decompress(rest, &mut chunk, FlushDecompress::None).map_err(io::Error::other)?;
        let of = |now: u64, before: u64| usize::try_from(now - before).unwrap_or(usize::MAX);
        let (read, written) = (of(decoder.total_in(), read), of(decoder.total_out(), written));
        rest = rest.get(read..).unwrap_or_default();
        all.extend_from_slice(chunk.get(..written).unwrap_or_default());
        if all.len() as u64 > most {
            return Ok(None);
        }
        match status {
            Status::StreamEnd if rest.is_empty() => return Ok(Some(all)),
            Status::StreamEnd => return Err(io::Error::other("something stands behind it")),
            // Nothing more comes of what is there.
            Status::Ok | Status::BufError if read == 0 && written == 0 => {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Status::Ok | Status::BufError => {}
        }
    }
}

/// Undoes Zstandard, one frame after the other.
fn zstd(bytes: &[u8], most: u64) -> io::Result<Option<Vec<u8>>> {
    let mut rest = bytes;
    let mut all = Vec::new();
    if rest.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    while !rest.is_empty() {
        if let Some(behind) = behind_skipped(rest)? {
            rest = behind;
            continue;
        }
        match memory(rest) {
            Some(Memory::Content(bytes)) if bytes > most => return Ok(None),
            Some(Memory::Window(bytes)) if bytes > LARGEST_WINDOW => {
                return Err(io::Error::other(format!("it needs a window of more than {LARGEST_WINDOW} bytes")));
            }
            _ => {}
        }
        let mut frame = StreamingDecoder::new(&mut rest).map_err(io::Error::other)?;
        let Some(decoded) = read_within(&mut frame, most.saturating_sub(all.len() as u64))? else { return Ok(None) };
        let (given, found) = (frame.decoder.get_checksum_from_data(), frame.decoder.get_calculated_checksum());
        if given.is_some() && given != found {
            return Err(io::Error::other("its checksum is wrong"));
        }
        all.extend(decoded);
    }
    Ok(Some(all))
}

/// Returns what stands behind a frame that is to be skipped; `None` where no such one begins here.
fn behind_skipped(bytes: &[u8]) -> io::Result<Option<&[u8]>> {
    let Some((magic, rest)) = bytes.split_first_chunk::<4>() else { return Ok(None) };
    if !ZSTD_SKIPPED.contains(&u32::from_le_bytes(*magic)) {
        return Ok(None);
    }
    let behind = rest.split_first_chunk::<4>().and_then(|(size, rest)| {
        let size = usize::try_from(u32::from_le_bytes(*size)).ok()?;
        rest.split_at_checked(size)
    });
    behind.map(|(_, behind)| Some(behind)).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// The most that the decoder of a frame has to remember.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Memory {
    Window(u64),
    /// All of its content.
    Content(u64),
}

/// Reads from a frame's head how much its decoder has to remember: RFC 8878, 3.1.1.1.
fn memory(frame: &[u8]) -> Option<Memory> {
    let (magic, rest) = frame.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*magic) != ZSTD_FRAME {
        return None;
    }
    let (descriptor, rest) = rest.split_first()?;
    if descriptor & 0x20 == 0 {
        let byte = *rest.first()?;
        let base = 1_u64 << (10 + (byte >> 3));
        return Some(Memory::Window(base + base / 8 * u64::from(byte & 7)));
    }
    let dictionary = [0, 1, 2, 4].get(usize::from(descriptor & 3)).copied()?;
    let size = rest.get(dictionary..)?;
    let (length, least) = [(1, 0), (2, 256), (4, 0), (8, 0)].get(usize::from(descriptor >> 6)).copied()?;
    let mut bytes = [0; 8];
    bytes.get_mut(..length)?.copy_from_slice(size.get(..length)?);
    Some(Memory::Content(u64::from_le_bytes(bytes).saturating_add(least)))
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
    use proptest::prelude::*;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;

    const MOST: u64 = 1024;

    pub(crate) fn gzipped(content: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    fn zlib(content: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    fn raw(content: &[u8]) -> Vec<u8> {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    fn zstandard(content: &[u8]) -> Vec<u8> {
        compress_to_vec(content, CompressionLevel::Fastest)
    }

    fn of(name: &str, bytes: Vec<u8>) -> Result<Bytes, Fault> {
        decoded(Some(name), &Bytes::from(bytes), MOST)
    }

    /// Every compression, under each of its names.
    fn all(content: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
        vec![
            ("gzip", gzipped(content)),
            ("x-gzip", gzipped(content)),
            (" GZIP ", gzipped(content)),
            ("deflate", zlib(content)),
            ("deflate", raw(content)),
            ("zstd", zstandard(content)),
        ]
    }

    #[test]
    fn names_of_charsets_and_of_none_leave_the_bytes_as_they_are() {
        let bytes = Bytes::from_static(b"\xff\x00 anything");
        assert_eq!(decoded(None, &bytes, MOST), Ok(bytes.clone()));
        for name in ["", "identity", "utf-8", "UTF-8", "utf8", "us-ascii", "binary", "8bit"] {
            assert_eq!(decoded(Some(name), &bytes, MOST).as_ref(), Ok(&bytes), "{name}");
            assert!(is_plain(name));
        }
    }

    #[test]
    fn encodings_that_are_not_known_are_refused_with_those_that_are() {
        for name in ["br", "compress", "base64", "iso-8859-1", "gzip, deflate", "application/gzip", "utf-16"] {
            let Err(Fault::Encoding(detail)) = of(name, b"x".to_vec()) else { panic!("{name}") };
            assert!(detail.contains(name) && detail.contains("\"zstd\""), "{detail}");
            assert!(!is_plain(name));
        }
    }

    #[test]
    fn what_was_compressed_comes_out_up_to_the_last_byte_that_fits() {
        let longest = usize::try_from(MOST).unwrap();
        for content in [&b""[..], b"{\"a\":1}", &vec![b'x'; longest], &vec![b'x'; longest + 1], &vec![0; 5_000_000]] {
            for (name, bytes) in all(content) {
                match of(name, bytes) {
                    Ok(decoded) => assert!(decoded == content && content.len() <= longest, "{name}"),
                    Err(Fault::TooLarge(detail)) => {
                        assert!(content.len() > longest && detail.contains("more than 1024 bytes"), "{name}: {detail}");
                    }
                    Err(fault) => panic!("{name}: {fault:?}"),
                }
            }
        }
    }

    #[test]
    fn what_is_cut_torn_or_followed_by_something_is_refused() {
        for (name, bytes) in all(b"a content that is long enough to be torn, content, content") {
            for broken in [
                Vec::new(),
                bytes[..bytes.len() - 1].to_vec(),
                bytes[..bytes.len() / 2].to_vec(),
                [&bytes[..], b"!"].concat(),
                b"no such thing at all".to_vec(),
            ] {
                assert!(matches!(of(name, broken.clone()), Err(Fault::Encoding(_))), "{name}: {broken:02x?}");
            }
        }
        // A wrong byte in the content or in its checksum.
        for (name, mut bytes) in
            [("gzip", gzipped(b"content")), ("deflate", zlib(b"content")), ("zstd", zstandard(b"content"))]
        {
            let last = bytes.len() - if name == "gzip" { 6 } else { 1 };
            bytes[last] ^= 1;
            assert!(matches!(of(name, bytes), Err(Fault::Encoding(_))), "{name}");
        }
    }

    #[test]
    fn several_members_and_frames_are_one_content_and_share_the_limit() {
        let skipped = [&0x184d_2a53_u32.to_le_bytes()[..], &3_u32.to_le_bytes(), b"abc"].concat();
        let frames = [zstandard(b"one "), skipped.clone(), zstandard(b"two")].concat();
        assert_eq!(of("zstd", frames).unwrap(), "one two");
        assert_eq!(of("gzip", [gzipped(b"one "), gzipped(b"two")].concat()).unwrap(), "one two");
        let half = vec![b'x'; 600];
        for (name, part) in [("gzip", gzipped(&half)), ("zstd", zstandard(&half))] {
            assert!(matches!(of(name, [part.clone(), part].concat()), Err(Fault::TooLarge(_))), "{name}");
        }
        assert!(matches!(of("zstd", skipped[..9].to_vec()), Err(Fault::Encoding(_))));
    }

    #[test]
    fn a_frame_that_wants_much_memory_is_refused_before_it_gets_it() {
        // The magic number, no length, a window of 1 GiB, and an empty last block.
        let greedy = [&ZSTD_FRAME.to_le_bytes()[..], &[0x00, 20 << 3, 0x01, 0x00, 0x00]].concat();
        let Err(Fault::Encoding(detail)) = of("zstd", greedy) else { panic!("it is taken") };
        assert!(detail.contains("window"), "{detail}");
        // One segment of 2^60 bytes, and nothing in it.
        let liar = [&ZSTD_FRAME.to_le_bytes()[..], &[0xe0], &(1_u64 << 60).to_le_bytes(), &[0x01, 0x00, 0x00]].concat();
        assert!(matches!(of("zstd", liar), Err(Fault::TooLarge(_))));
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            for name in ["gzip", "deflate", "zstd"] {
                let _ = of(name, bytes.clone());
            }
            for (name, mut good) in all(b"a content that is long enough to be torn, content, content") {
                let place = bytes.first().map_or(0, |byte| usize::from(*byte) % good.len());
                good[place] ^= bytes.last().copied().unwrap_or(1);
                let _ = of(name, good);
            }
        }
    }
}

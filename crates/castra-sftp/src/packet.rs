//! Framing of packets on a stream: a length of four bytes, then the packet.

use std::io;

use bytes::{BufMut as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::MAX_PACKET_BYTES;

/// Reads one packet; returns `None` if the stream has ended between two packets.
///
/// # Errors
/// The stream failed or ended within a packet, or the packet is empty or longer than
/// [`MAX_PACKET_BYTES`].
pub async fn read_packet(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Bytes>> {
    let mut length = [0; 4];
    if stream.read(&mut length[..1]).await? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut length[1..]).await?;
    let length = u32::from_be_bytes(length);
    if length == 0 || length > MAX_PACKET_BYTES {
        let what = format!("an SFTP packet of {length} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    let length = length as usize;
    let mut packet = BytesMut::with_capacity(length);
    while packet.len() < length {
        let rest = length - packet.len();
        if stream.read_buf(&mut (&mut packet).limit(rest)).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(Some(packet.freeze()))
}

/// Writes one packet, without flushing.
///
/// # Errors
/// The stream failed, or the packet is longer than [`MAX_PACKET_BYTES`].
pub async fn write_packet(stream: &mut (impl AsyncWrite + Unpin), packet: &[u8]) -> io::Result<()> {
    let length = u32::try_from(packet.len()).ok().filter(|length| *length <= MAX_PACKET_BYTES);
    let length = length.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    stream.write_all(&length.to_be_bytes()).await?;
    stream.write_all(packet).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_packet_is_bounded_and_whole() {
        let mut stream = Vec::new();
        write_packet(&mut stream, b"abc").await.expect("writes");
        assert_eq!(
            read_packet(&mut &stream[..]).await.expect("reads").expect("is there"),
            b"abc"[..]
        );
        assert!(read_packet(&mut &stream[..stream.len() - 1]).await.is_err(), "cut off");
        assert!(read_packet(&mut &b""[..]).await.expect("ends").is_none());
        assert!(read_packet(&mut &b"\0\0\0\0"[..]).await.is_err(), "empty");
        assert!(read_packet(&mut &b"\xff\xff\xff\xff"[..]).await.is_err(), "too long");
        let long = vec![0; MAX_PACKET_BYTES as usize + 1];
        assert!(write_packet(&mut Vec::new(), &long).await.is_err());
    }
}

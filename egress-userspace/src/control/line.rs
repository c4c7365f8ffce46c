//! Lines of bounded length over a socket.

use std::io::{self, BufRead, ErrorKind, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Why a line could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// The socket failed, or the other side was too slow.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The line is longer than allowed.
    #[error("a line is longer than {0} bytes")]
    TooLong(usize),
    /// The line is not what was expected.
    #[error("a line cannot be understood: {0}")]
    Json(#[from] serde_json::Error),
}

/// Reads one line of at most `limit` bytes; `None` at the end of the stream.
pub(super) fn read<T: DeserializeOwned>(
    reader: &mut impl BufRead,
    limit: usize,
) -> Result<Option<T>, LineError> {
    let mut line = Vec::new();
    loop {
        let buffer = match reader.fill_buf() {
            Ok(buffer) => buffer,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        if buffer.is_empty() {
            if line.is_empty() {
                return Ok(None);
            }
            return Err(io::Error::from(ErrorKind::UnexpectedEof).into());
        }
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let taken = end.unwrap_or(buffer.len());
        if line.len() + taken > limit {
            return Err(LineError::TooLong(limit));
        }
        line.extend_from_slice(buffer.get(..taken).unwrap_or_default());
        reader.consume(taken + usize::from(end.is_some()));
        if end.is_some() {
            return Ok(Some(serde_json::from_slice(&line)?));
        }
    }
}

/// Writes one line.
pub(super) fn write<T: Serialize>(writer: &mut impl Write, value: &T) -> Result<(), LineError> {
    serde_json::to_writer(&mut *writer, value)?;
    writer.write_all(b"\n")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use super::*;

    fn all(text: &str, limit: usize) -> Result<Vec<u32>, LineError> {
        let mut reader = BufReader::with_capacity(3, text.as_bytes());
        let mut found = Vec::new();
        while let Some(number) = read(&mut reader, limit)? {
            found.push(number);
        }
        Ok(found)
    }

    #[test]
    fn lines_are_read_one_by_one() {
        assert_eq!(all("1\n22222\n3\n", 10).unwrap(), [1, 22222, 3]);
        assert_eq!(all("", 10).unwrap(), [0; 0]);
    }

    #[test]
    fn long_cut_and_senseless_lines_are_refused() {
        assert!(matches!(all("123456\n", 5), Err(LineError::TooLong(5))));
        assert!(matches!(all("12", 5), Err(LineError::Io(_))));
        assert!(matches!(all("{\n", 5), Err(LineError::Json(_))));
        assert!(matches!(all("\n", 5), Err(LineError::Json(_))));
    }
}

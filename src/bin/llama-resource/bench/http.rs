//! As much of an HTTP/1.1 client as a benchmark needs: one request a connection, to 127.0.0.1, the whole
//! answer at once.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// An answer larger than this is not one that we asked for.
const LARGEST: u64 = 64 << 20;

/// Status and body of an answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body, its chunks joined.
    pub body: Vec<u8>,
}

/// Sends one request; a body is JSON.
pub fn request(port: u16, method: &str, path: &str, body: Option<&str>, patience: Duration) -> Result<Answer, String> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let failed = |e: std::io::Error| format!("{method} {path}: {e}");
    let mut stream = TcpStream::connect_timeout(&address, patience).map_err(failed)?;
    stream.set_read_timeout(Some(patience)).and_then(|()| stream.set_nodelay(true)).map_err(failed)?;
    let body = body.unwrap_or("");
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + body).as_bytes()).map_err(failed)?;
    answer(BufReader::new(stream)).map_err(|e| format!("{method} {path}: {e}"))
}

/// Reads an answer.
fn answer(from: impl BufRead) -> Result<Answer, String> {
    // Headers and chunk sizes count too, so that no line can be endless.
    let mut from = from.take(LARGEST);
    let first = line(&mut from)?;
    let status = first.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)).and_then(|code| code.parse().ok());
    let status = status.ok_or_else(|| format!("expected an HTTP answer, found `{first}`"))?;
    let (mut length, mut chunked) = (None, false);
    loop {
        let header = line(&mut from)?;
        let Some((name, value)) = header.split_once(':') else {
            if header.is_empty() {
                break;
            }
            return Err(format!("expected a header, found `{header}`"));
        };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => {
                let number =
                    value.trim().parse::<u64>().map_err(|_| format!("bad Content-Length `{}`", value.trim()))?;
                length = Some(number);
            }
            "transfer-encoding" => chunked = value.to_ascii_lowercase().contains("chunked"),
            _ => {}
        }
    }
    let mut body = Vec::new();
    match (chunked, length) {
        (true, _) => chunks(&mut from, &mut body)?,
        (false, Some(length)) => exactly(&mut from, length, &mut body)?,
        // The connection's end is the answer's.
        (false, None) => _ = from.read_to_end(&mut body).map_err(|e| e.to_string())?,
    }
    Ok(Answer { status, body })
}

fn chunks(from: &mut impl BufRead, body: &mut Vec<u8>) -> Result<(), String> {
    loop {
        let head = line(from)?;
        let size = head.split(';').next().unwrap_or_default().trim();
        let size = u64::from_str_radix(size, 16).map_err(|_| format!("bad chunk size `{head}`"))?;
        if size == 0 {
            // Trailers, if there are any, say nothing that we need.
            return Ok(());
        }
        exactly(from, size, body)?;
        if !line(from)?.is_empty() {
            return Err("a chunk is longer than its size".to_owned());
        }
    }
}

fn exactly(from: &mut impl BufRead, length: u64, body: &mut Vec<u8>) -> Result<(), String> {
    let read = from.take(length).read_to_end(body).map_err(|e| e.to_string())?;
    if read as u64 == length { Ok(()) } else { Err(format!("the answer ends after {read} of {length} bytes")) }
}

/// A line without its end.
fn line(from: &mut impl BufRead) -> Result<String, String> {
    let mut bytes = Vec::new();
    from.read_until(b'\n', &mut bytes).map_err(|e| e.to_string())?;
    if bytes.pop() != Some(b'\n') {
        return Err("the answer ends before it is complete".to_owned());
    }
    if bytes.last() == Some(&b'\r') {
        bytes.pop();
    }
    String::from_utf8(bytes).map_err(|_| "the answer's head is not text".to_owned())
}

#[cfg(test)]
mod tests {
    use super::answer;

    fn of(text: &str) -> Result<(u16, String), String> {
        answer(text.as_bytes()).map(|a| (a.status, String::from_utf8(a.body).unwrap()))
    }

    #[test]
    fn a_body_ends_where_it_says() {
        assert_eq!(of("HTTP/1.1 200 OK\r\ncontent-LENGTH: 2\r\n\r\n{}more"), Ok((200, "{}".to_owned())));
        assert_eq!(of("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"), Ok((404, String::new())));
        assert_eq!(of("HTTP/1.0 200 OK\r\n\r\nto the end"), Ok((200, "to the end".to_owned())));
        let chunked =
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nWiki\r\n9;x=1\r\npedia in \r\n0\r\n\r\n";
        assert_eq!(of(chunked), Ok((200, "Wikipedia in ".to_owned())), "{:?}", of(chunked));
    }

    #[test]
    fn what_is_no_answer_is_said_to_be_none() {
        for (text, expected) in [
            ("", "ends before it is complete"),
            ("220 mail.example\r\n", "expected an HTTP answer"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort", "after 5 of 9 bytes"),
            ("HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n", "bad Content-Length `many`"),
            ("HTTP/1.1 200 OK\r\nnonsense\r\n\r\n", "expected a header"),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "bad chunk size"),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n", "longer than its size"),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", "after 2 of 5 bytes"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n", "ends before it is complete"),
        ] {
            let found = of(text).unwrap_err();
            assert!(found.contains(expected), "{text:?}: {found}");
        }
    }
}

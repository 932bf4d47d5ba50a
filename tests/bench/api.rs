//! A client of the agent's API that keeps its connection, as a plugin or an orchestrator would.

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// One connection.
#[derive(Debug)]
pub struct Api {
    stream: BufReader<UnixStream>,
    socket: PathBuf,
}

impl Api {
    pub fn connect(socket: &Path) -> Result<Self> {
        let stream =
            UnixStream::connect(socket).with_context(|| format!("nobody answers at {}", socket.display()))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok(Self {
            stream: BufReader::new(stream),
            socket: socket.to_owned(),
        })
    }

    pub fn get(&mut self, path: &str) -> Result<Value> {
        self.request("GET", path, "")
    }

    pub fn post(&mut self, path: &str, body: &Value) -> Result<Value> {
        self.request("POST", path, &body.to_string())
    }

    fn request(&mut self, method: &str, path: &str, body: &str) -> Result<Value> {
        let answer = self.exchange(method, path, body);
        let (status, value) =
            answer.with_context(|| format!("{method} {path} at {}", self.socket.display()))?;
        if status != 200 {
            bail!(
                "{method} {path} at {} was answered with {status}: {value}",
                self.socket.display()
            );
        }
        Ok(value)
    }

    /// HTTP/1.1 as far as the agent uses it: a length and no chunks.
    fn exchange(&mut self, method: &str, path: &str, body: &str) -> Result<(u16, Value)> {
        let length = body.len();
        let request =
            format!("{method} {path} HTTP/1.1\r\nhost: weft\r\ncontent-length: {length}\r\n\r\n{body}");
        self.stream.get_mut().write_all(request.as_bytes())?;
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let status = line
            .split(' ')
            .nth(1)
            .and_then(|code| code.parse().ok())
            .context("no status")?;
        let mut length = 0;
        loop {
            line.clear();
            self.stream.read_line(&mut line)?;
            let header = line.trim_end();
            if header.is_empty() {
                break;
            }
            if let Some((name, value)) = header.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse()?;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok((status, serde_json::from_slice(&body)?))
    }
}

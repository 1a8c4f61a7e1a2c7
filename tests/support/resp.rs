//! A Redis client for tests: one command, one answer, in RESP2
//! (<https://redis.io/docs/latest/develop/reference/protocol-spec/>).

use std::io;
use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::{LIMIT, within};

/// Asks a server one thing on a connection of its own. Numbers and arrays are JSON's, everything else is text, an
/// error is an error.
pub async fn ask(to: SocketAddr, command: &[&str]) -> io::Result<Value> {
    let exchange = async {
        let mut stream = BufReader::new(TcpStream::connect(to).await?);
        let mut request = format!("*{}\r\n", command.len());
        for part in command {
            request.push_str(&format!("${}\r\n{part}\r\n", part.len()));
        }
        stream.write_all(request.as_bytes()).await?;
        read(&mut stream).await
    };
    within(LIMIT, &format!("{to} to answer {command:?}"), exchange).await
}

/// Hears a channel.
#[derive(Debug)]
pub struct Subscriber(BufReader<TcpStream>);

impl Subscriber {
    /// Subscribes; the server has acknowledged it when this returns.
    pub async fn start(to: SocketAddr, channel: &str) -> io::Result<Self> {
        let mut stream = BufReader::new(TcpStream::connect(to).await?);
        stream.write_all(format!("SUBSCRIBE {channel}\r\n").as_bytes()).await?;
        within(LIMIT, "the channel to be subscribed", read(&mut stream)).await?;
        Ok(Self(stream))
    }

    /// The next message, as text.
    pub async fn next(&mut self) -> String {
        let message = within(LIMIT, "a message on the channel", read(&mut self.0)).await.unwrap();
        message[2].as_str().unwrap().to_owned()
    }
}

async fn read(stream: &mut BufReader<TcpStream>) -> io::Result<Value> {
    let mut line = String::new();
    if stream.read_line(&mut line).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let (kind, rest) = line.trim_end().split_at(1);
    let number = || rest.parse::<i64>().map_err(io::Error::other);
    match kind {
        "+" => Ok(json!(rest)),
        "-" => Err(io::Error::other(rest.to_owned())),
        ":" => Ok(json!(number()?)),
        "$" if number()? < 0 => Ok(Value::Null),
        "$" => {
            let mut bytes = vec![0; usize::try_from(number()?).map_err(io::Error::other)? + 2];
            stream.read_exact(&mut bytes).await?;
            bytes.truncate(bytes.len() - 2);
            Ok(json!(String::from_utf8_lossy(&bytes)))
        }
        "*" => {
            let mut items = Vec::new();
            for _ in 0..number()?.max(0) {
                items.push(Box::pin(read(stream)).await?);
            }
            Ok(Value::Array(items))
        }
        _ => Err(io::Error::other(format!("not RESP2: {line:?}"))),
    }
}

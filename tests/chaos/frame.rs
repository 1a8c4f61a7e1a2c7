//! What devices send: each frame says whose it is.

use serde_json::{Value, json};

const PADDING: usize = 40;

/// What a frame says of itself.
#[derive(Debug, Clone, Copy)]
pub struct Frame {
    pub user: u32,
    pub device: u8,
    pub sender: u32,
    pub generation: u64,
    pub number: u32,
    pub mark: Mark,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    None,
    /// Sent after the sender got `overwritten`.
    Late,
    /// Sent in the calm: must arrive.
    Calm,
}

impl Frame {
    pub fn encode(self, stream: u8) -> Vec<u8> {
        let mut bytes = vec![stream];
        bytes.extend(self.user.to_be_bytes());
        bytes.push(self.device);
        bytes.extend(self.sender.to_be_bytes());
        bytes.extend(self.generation.to_be_bytes());
        bytes.extend(self.number.to_be_bytes());
        bytes.push(self.mark as u8);
        bytes.extend([0x55; PADDING]);
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let number = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let mark = [Mark::None, Mark::Late, Mark::Calm];
        (bytes.len() == 23 + PADDING).then_some(())?;
        Some(Self {
            user: number(1)?,
            device: bytes[5],
            sender: number(6)?,
            generation: u64::from_be_bytes(bytes.get(10..18)?.try_into().ok()?),
            number: number(18)?,
            mark: *mark.get(usize::from(bytes[22]))?,
        })
    }

    pub fn to_json(self) -> Value {
        json!([self.user, self.device, self.sender, self.generation, self.number, self.mark as u8])
    }

    pub fn from_json(value: &Value) -> Option<Self> {
        let number = |at: usize| value[at].as_u64().and_then(|number| u32::try_from(number).ok());
        let mark = [Mark::None, Mark::Late, Mark::Calm];
        Some(Self {
            user: number(0)?,
            device: u8::try_from(number(1)?).ok()?,
            sender: number(2)?,
            generation: value[3].as_u64()?,
            number: number(4)?,
            mark: *mark.get(usize::try_from(number(5)?).ok()?)?,
        })
    }
}

//! TensorBoard's messages as bytes: the few fields of `tensorflow/core/util/event.proto` and
//! `tensorflow/core/framework/summary.proto` that scalars and pictures need, in the wire format of protocol buffers.

/// What an event says.
pub(crate) enum Event<'a> {
    /// The first record of a file.
    FileVersion,
    /// The run begins, or begins again, with the event's step: readers forget what earlier files say from there on.
    SessionStart,
    /// One number.
    Scalar { tag: &'a str, value: f32 },
    /// One picture, as the bytes of a PNG file.
    Image { tag: &'a str, png: &'a [u8], width_px: u32, height_px: u32 },
}

/// The bytes of an `Event`. `wall_time_s` are seconds since 1970.
pub(crate) fn encode(event: &Event<'_>, wall_time_s: f64, step: u64) -> Vec<u8> {
    let mut message = Message::default();
    message.double(1, wall_time_s);
    message.varint(2, step);
    match event {
        Event::FileVersion => message.bytes(3, b"brain.Event:2"),
        Event::SessionStart => {
            let mut session_log = Message::default();
            session_log.varint(1, 1); // status = START
            message.message(7, &session_log);
        }
        Event::Scalar { tag, value } => {
            let mut entry = Message::default();
            entry.bytes(1, tag.as_bytes());
            entry.float(2, *value);
            message.message(5, &summary(&entry));
        }
        Event::Image { tag, png, width_px, height_px } => {
            let mut image = Message::default();
            image.varint(1, u64::from(*height_px));
            image.varint(2, u64::from(*width_px));
            image.varint(3, 3); // colorspace = RGB
            image.bytes(4, png);
            let mut entry = Message::default();
            entry.bytes(1, tag.as_bytes());
            entry.message(4, &image);
            message.message(5, &summary(&entry));
        }
    }
    message.0
}

/// A `Summary` of one value.
fn summary(value: &Message) -> Message {
    let mut summary = Message::default();
    summary.message(1, value);
    summary
}

/// A message that grows. Fields at zero are left out, as proto3 has it.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, field: u64, value: u64) {
        if value != 0 {
            self.number(field << 3);
            self.number(value);
        }
    }

    fn double(&mut self, field: u64, value: f64) {
        self.number(field << 3 | 1);
        self.0.extend(value.to_le_bytes());
    }

    /// Zero is written: it is one of several kinds of value (`oneof`), which says that it is there.
    fn float(&mut self, field: u64, value: f32) {
        self.number(field << 3 | 5);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.number(field << 3 | 2);
        self.number(bytes.len() as u64);
        self.0.extend(bytes);
    }

    fn message(&mut self, field: u64, message: &Message) {
        self.bytes(field, &message.0);
    }

    /// Seven bits a byte, low ones first; the high bit says that more follow.
    fn number(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

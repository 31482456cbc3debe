//! Protobuf's wire format, as far as a trace needs it.

/// A message being written.
#[derive(Clone, Debug, Default)]
pub(super) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }

    fn key(&mut self, field: u32, wire: u32) {
        self.varint(u64::from(field << 3 | wire));
    }

    /// Numbers, enums and truths.
    pub(super) fn uint(&mut self, field: u32, value: u64) -> &mut Self {
        self.key(field, 0);
        self.varint(value);
        self
    }

    /// `int32` and `int64`: a negative number takes ten bytes.
    pub(super) fn int(&mut self, field: u32, value: i64) -> &mut Self {
        self.uint(field, value.cast_unsigned())
    }

    pub(super) fn fixed64(&mut self, field: u32, value: u64) -> &mut Self {
        self.key(field, 1);
        self.bytes.extend(value.to_le_bytes());
        self
    }

    pub(super) fn double(&mut self, field: u32, value: f64) -> &mut Self {
        self.fixed64(field, value.to_bits())
    }

    pub(super) fn text(&mut self, field: u32, text: &str) -> &mut Self {
        self.block(field, text.as_bytes())
    }

    pub(super) fn message(&mut self, field: u32, message: &Self) -> &mut Self {
        self.block(field, &message.bytes)
    }

    /// A message that `fill` writes.
    pub(super) fn within(&mut self, field: u32, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let mut message = Self::default();
        fill(&mut message);
        self.message(field, &message)
    }

    fn block(&mut self, field: u32, bytes: &[u8]) -> &mut Self {
        self.key(field, 2);
        self.varint(bytes.len() as u64);
        self.bytes.extend(bytes);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::Message;

    #[test]
    fn values_are_those_of_the_encoding_guide() {
        let mut m = Message::default();
        m.uint(1, 150).text(2, "testing").within(3, |m| _ = m.uint(1, 150)).int(16, -2).fixed64(4, 1).double(5, 1.0);
        let mut want = b"\x08\x96\x01\x12\x07testing\x1a\x03\x08\x96\x01".to_vec();
        want.extend(b"\x80\x01\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01");
        want.extend(b"\x21\x01\0\0\0\0\0\0\0\x29\0\0\0\0\0\0\xf0\x3f");
        assert_eq!(m.bytes(), want);
    }
}

//! The stack machine that a pickle is a program for, without the power to call anything.
//!
//! Opcodes as in Python's `pickletools`. Those that PyTorch's writer never uses are refused by name; so is every name
//! that is not on the list of `pickle_globals`, whether it is called or only mentioned.

use std::collections::BTreeMap;
use std::path::Path;

use crate::byte_cursor::ByteCursor;
use crate::error::AdapterError;
use crate::pickle::{StorageRecord, TensorRecord, Value, ValueId};
use crate::pickle_globals::{self, Global};
use crate::pickle_opcodes::{Opcode, opcode_name};
use crate::tensor_header::MAX_RANK;

/// The most values, places on the stack and entries of the memo: a tensor of an SD checkpoint takes about 20.
const MAX_VALUES: usize = 4_000_000;
/// As much of a refused name as is shown.
const MAX_CALL_CHARS: usize = 100;

/// The state of a pickle that is being read.
pub(crate) struct PickleMachine<'a> {
    path: &'a Path,
    cursor: ByteCursor<'a>,
    values: Vec<Value>,
    stack: Vec<ValueId>,
    /// Heights of the stack at which a mark was set.
    marks: Vec<usize>,
    memo: BTreeMap<u32, ValueId>,
}

impl<'a> PickleMachine<'a> {
    pub(crate) fn new(path: &'a Path, bytes: &'a [u8]) -> Self {
        let cursor = ByteCursor::new(bytes);
        Self { path, cursor, values: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: BTreeMap::new() }
    }

    /// Runs to the end: all values, and which of them is the result.
    pub(crate) fn run(mut self) -> Result<(Vec<Value>, ValueId), AdapterError> {
        loop {
            let byte = self.read(ByteCursor::u8)?;
            let Some(opcode) = Opcode::of_byte(byte) else {
                return Err(self.refused(opcode_name(byte)));
            };
            if opcode == Opcode::Stop {
                let root = self.pop()?;
                return Ok((self.values, root));
            }
            self.step(opcode)?;
            let heights = [self.values.len(), self.stack.len(), self.marks.len(), self.memo.len()];
            if heights.iter().any(|height| *height > MAX_VALUES) {
                return Err(self.invalid("more values than any checkpoint has"));
            }
        }
    }

    fn step(&mut self, opcode: Opcode) -> Result<(), AdapterError> {
        match opcode {
            Opcode::Proto => self.skip(1),
            Opcode::Frame => self.skip(8),
            Opcode::Mark => {
                self.marks.push(self.stack.len());
                Ok(())
            }
            Opcode::Pop => self.pop().map(drop),
            Opcode::PopMark => self.pop_mark().map(drop),
            Opcode::BinPut | Opcode::LongBinPut | Opcode::Memoize => self.memoize(opcode),
            Opcode::BinGet | Opcode::LongBinGet => self.recall(opcode),
            Opcode::Global | Opcode::StackGlobal | Opcode::Inst => self.global(opcode),
            Opcode::BinPersId => self.persistent_id(),
            Opcode::Reduce | Opcode::NewObj => self.call(),
            Opcode::Build => self.build(),
            Opcode::Append | Opcode::Appends | Opcode::SetItem | Opcode::SetItems | Opcode::AddItems => {
                self.extend(opcode)
            }
            _ => {
                let value = self.new_value(opcode)?;
                self.push(value);
                Ok(())
            }
        }
    }

    /// The value that an opcode makes of its own argument or of what lies on the stack.
    fn new_value(&mut self, opcode: Opcode) -> Result<Value, AdapterError> {
        Ok(match opcode {
            Opcode::NewTrue => Value::Bool(true),
            Opcode::NewFalse => Value::Bool(false),
            Opcode::BinInt => Value::Int(i64::from(self.read(ByteCursor::u32)?.cast_signed())),
            Opcode::BinInt1 => Value::Int(i64::from(self.read(ByteCursor::u8)?)),
            Opcode::BinInt2 => Value::Int(i64::from(self.read(ByteCursor::u16)?)),
            Opcode::Long1 => {
                let num_bytes = self.read(ByteCursor::u8)?;
                long(self.take(u64::from(num_bytes))?)
            }
            Opcode::BinFloat => Value::Float(f64::from_be_bytes(self.read(ByteCursor::array)?)),
            Opcode::ShortBinUnicode | Opcode::BinUnicode | Opcode::BinUnicode8 => {
                let bytes = self.counted(opcode)?;
                let text = std::str::from_utf8(bytes).map_err(|_| self.invalid("a text is not UTF-8"))?;
                Value::Text(text.to_owned())
            }
            // Text of Python 2, and bytes.
            Opcode::ShortBinString | Opcode::BinString => {
                std::str::from_utf8(self.counted(opcode)?).map_or(Value::Opaque, |text| Value::Text(text.to_owned()))
            }
            Opcode::ShortBinBytes | Opcode::BinBytes | Opcode::BinBytes8 => {
                self.counted(opcode)?;
                Value::Opaque
            }
            Opcode::EmptyTuple => Value::Tuple(Vec::new()),
            Opcode::Tuple1 => Value::Tuple(self.pop_many(1)?),
            Opcode::Tuple2 => Value::Tuple(self.pop_many(2)?),
            Opcode::Tuple3 => Value::Tuple(self.pop_many(3)?),
            Opcode::Tuple => Value::Tuple(self.pop_mark()?),
            Opcode::EmptyList => Value::List(Vec::new()),
            Opcode::EmptyDict => Value::Dict(Vec::new()),
            Opcode::EmptySet => Value::Opaque,
            Opcode::FrozenSet => {
                self.pop_mark()?;
                Value::Opaque
            }
            _ => Value::None,
        })
    }

    /// APPEND, SETITEM and their kind: adds what lies on top of a container to it.
    fn extend(&mut self, opcode: Opcode) -> Result<(), AdapterError> {
        let items = match opcode {
            Opcode::Append => self.pop_many(1)?,
            Opcode::SetItem => self.pop_many(2)?,
            _ => self.pop_mark()?,
        };
        let container = self.top()?;
        match (opcode, self.value_mut(container)) {
            (Opcode::Append | Opcode::Appends, Value::List(list)) => list.extend(items),
            (Opcode::SetItem | Opcode::SetItems, Value::Dict(dict)) if items.len().is_multiple_of(2) => {
                dict.extend(items.as_chunks().0.iter().map(|[key, value]| (*key, *value)));
            }
            (_, Value::Opaque) => {}
            _ => return Err(self.invalid("items are added to something that is no container of theirs")),
        }
        Ok(())
    }

    fn memoize(&mut self, opcode: Opcode) -> Result<(), AdapterError> {
        let place = match opcode {
            Opcode::BinPut => u32::from(self.read(ByteCursor::u8)?),
            Opcode::LongBinPut => self.read(ByteCursor::u32)?,
            _ => self.memo.len() as u32,
        };
        let top = self.top()?;
        self.memo.insert(place, top);
        Ok(())
    }

    fn recall(&mut self, opcode: Opcode) -> Result<(), AdapterError> {
        let place = match opcode {
            Opcode::BinGet => u32::from(self.read(ByteCursor::u8)?),
            _ => self.read(ByteCursor::u32)?,
        };
        let id = *self.memo.get(&place).ok_or_else(|| self.invalid("an empty place of the memo is asked for"))?;
        self.stack.push(id);
        Ok(())
    }

    /// GLOBAL and STACK_GLOBAL mention a name; INST would call it at once.
    fn global(&mut self, opcode: Opcode) -> Result<(), AdapterError> {
        let (module, name) = if opcode == Opcode::StackGlobal {
            let names = self.pop_many(2)?;
            match [self.value(names[0]), self.value(names[1])] {
                [Value::Text(module), Value::Text(name)] => (module.clone(), name.clone()),
                _ => return Err(self.invalid("a name is not text")),
            }
        } else {
            (self.line()?, self.line()?)
        };
        match pickle_globals::lookup(&module, &name) {
            Some(_) if opcode == Opcode::Inst => Err(self.refused("INST")),
            Some(global) => {
                self.push(Value::Global(global));
                Ok(())
            }
            None => {
                let printable = |c: char| if c.is_control() { '?' } else { c };
                let call = format!("{module}.{name}").chars().take(MAX_CALL_CHARS).map(printable).collect();
                Err(AdapterError::UnsafePickle { path: self.path.to_owned(), call })
            }
        }
    }

    /// BINPERSID: `("storage", type, key, device, number of elements)` is the only thing that PyTorch stores outside.
    fn persistent_id(&mut self) -> Result<(), AdapterError> {
        let id = self.pop()?;
        let Value::Tuple(parts) = self.value(id) else { return Err(self.invalid("a storage is not a tuple")) };
        let storage = match parts.as_slice() {
            [kind, dtype, key, _device, num_elements] => {
                match [self.value(*kind), self.value(*dtype), self.value(*key), self.value(*num_elements)] {
                    [Value::Text(kind), Value::Global(Global::Storage(dtype)), Value::Text(_), Value::Int(number)]
                        if kind == "storage" =>
                    {
                        u64::try_from(*number).ok().map(|num_elements| (*dtype, *key, num_elements))
                    }
                    _ => None,
                }
            }
            _ => None,
        };
        let (dtype, key, num_elements) = storage.ok_or_else(|| self.invalid("a storage is not described as such"))?;
        self.push(Value::Storage(StorageRecord { dtype, key, num_elements }));
        Ok(())
    }

    /// REDUCE and NEWOBJ: what a call on the list means, found from its arguments alone.
    fn call(&mut self) -> Result<(), AdapterError> {
        let operands = self.pop_many(2)?;
        let Value::Global(callee) = *self.value(operands[0]) else {
            return Err(self.invalid("something that is not a function is called"));
        };
        let Value::Tuple(arguments) = self.value(operands[1]) else {
            return Err(self.invalid("the arguments of a call are not a tuple"));
        };
        match (callee, arguments.as_slice()) {
            (Global::RebuildTensor, [storage, offset, shape, strides, ..]) => {
                let tensor = self.tensor([*storage, *offset, *shape, *strides]);
                let tensor = tensor.ok_or_else(|| self.invalid("a tensor is not described as such"))?;
                self.push(Value::Tensor(Box::new(tensor)));
            }
            (Global::RebuildParameter, [tensor, ..]) if matches!(self.value(*tensor), Value::Tensor(_)) => {
                let tensor = *tensor;
                self.stack.push(tensor);
            }
            (Global::Size, [shape]) if matches!(self.value(*shape), Value::Tuple(_)) => {
                let shape = *shape;
                self.stack.push(shape);
            }
            (Global::OrderedDict, []) => self.push(Value::Dict(Vec::new())),
            (Global::Opaque, _) => self.push(Value::Opaque),
            _ => return Err(self.invalid("a call with arguments that PyTorch does not write")),
        }
        Ok(())
    }

    fn tensor(&self, [storage, offset, shape, strides]: [ValueId; 4]) -> Option<TensorRecord> {
        let Value::Storage(storage) = *self.value(storage) else { return None };
        let offset = self.number(offset)?;
        let (shape, strides) = (self.numbers(shape)?, self.numbers(strides)?);
        (shape.len() == strides.len()).then_some(TensorRecord { storage, offset, shape, strides })
    }

    fn number(&self, id: ValueId) -> Option<u64> {
        match self.value(id) {
            Value::Int(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    /// A tuple of at most 8 numbers: copied for every tensor, so a longer one would cost more than its bytes.
    fn numbers(&self, id: ValueId) -> Option<Vec<u64>> {
        match self.value(id) {
            Value::Tuple(parts) if parts.len() <= MAX_RANK => parts.iter().map(|part| self.number(*part)).collect(),
            _ => None,
        }
    }

    /// BUILD sets attributes. Those of a dictionary (`_metadata` of a state dict) and of skipped data mean nothing here.
    fn build(&mut self) -> Result<(), AdapterError> {
        self.pop()?;
        let object = self.top()?;
        match self.value(object) {
            Value::Dict(_) | Value::Opaque => Ok(()),
            _ => Err(self.refused("BUILD")),
        }
    }

    fn value(&self, id: ValueId) -> &Value {
        &self.values[id.0 as usize]
    }

    fn value_mut(&mut self, id: ValueId) -> &mut Value {
        &mut self.values[id.0 as usize]
    }

    fn push(&mut self, value: Value) {
        self.stack.push(ValueId(self.values.len() as u32));
        self.values.push(value);
    }

    fn top(&self) -> Result<ValueId, AdapterError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        self.stack.get(floor..).and_then(<[ValueId]>::last).copied().ok_or_else(|| self.empty_stack())
    }

    fn pop(&mut self) -> Result<ValueId, AdapterError> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    /// As many values from above the last mark, in the order in which they were pushed.
    fn pop_many(&mut self, count: usize) -> Result<Vec<ValueId>, AdapterError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len().checked_sub(count) {
            Some(start) if start >= floor => Ok(self.stack.split_off(start)),
            _ => Err(self.empty_stack()),
        }
    }

    /// All values above the last mark, and the mark.
    fn pop_mark(&mut self) -> Result<Vec<ValueId>, AdapterError> {
        let mark = self.marks.pop().ok_or_else(|| self.invalid("a mark is missing"))?;
        Ok(self.stack.split_off(mark))
    }

    fn read<T>(&mut self, take: impl FnOnce(&mut ByteCursor<'a>) -> Option<T>) -> Result<T, AdapterError> {
        take(&mut self.cursor).ok_or_else(|| self.invalid("it ends too early"))
    }

    fn take(&mut self, num_bytes: u64) -> Result<&'a [u8], AdapterError> {
        self.read(|cursor| cursor.take(usize::try_from(num_bytes).ok()?))
    }

    fn skip(&mut self, num_bytes: u64) -> Result<(), AdapterError> {
        self.take(num_bytes).map(drop)
    }

    /// The bytes of a text or of bytes, behind their number.
    fn counted(&mut self, opcode: Opcode) -> Result<&'a [u8], AdapterError> {
        let num_bytes = match opcode {
            Opcode::ShortBinUnicode | Opcode::ShortBinString | Opcode::ShortBinBytes => {
                u64::from(self.read(ByteCursor::u8)?)
            }
            Opcode::BinUnicode8 | Opcode::BinBytes8 => self.read(ByteCursor::u64)?,
            _ => u64::from(self.read(ByteCursor::u32)?),
        };
        self.take(num_bytes)
    }

    fn line(&mut self) -> Result<String, AdapterError> {
        let line = self.read(ByteCursor::line)?;
        Ok(String::from_utf8_lossy(line).into_owned())
    }

    fn empty_stack(&self) -> AdapterError {
        self.invalid("its stack is empty where a value is needed")
    }

    fn invalid(&self, problem: &'static str) -> AdapterError {
        AdapterError::BadPickle { path: self.path.to_owned(), position: self.cursor.position() as u64, problem }
    }

    fn refused(&self, operation: &'static str) -> AdapterError {
        AdapterError::PickleOperation { path: self.path.to_owned(), operation }
    }
}

/// An integer of any length, little-endian with sign; one of more than 64 bits is skipped.
fn long(bytes: &[u8]) -> Value {
    let mut wide = [if bytes.last().is_some_and(|byte| byte & 0x80 != 0) { 0xFF } else { 0 }; 8];
    match wide.get_mut(..bytes.len()) {
        Some(part) => {
            part.copy_from_slice(bytes);
            Value::Int(i64::from_le_bytes(wide))
        }
        None => Value::Opaque,
    }
}

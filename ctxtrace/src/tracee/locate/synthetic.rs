//! Builds synthetic executables of three kilobytes with tokio's or Go's thread-local. They are so small that tests can corrupt
//! every single byte, and can omit any part.

/// The symbol of tokio's thread-local.
pub(super) const CONTEXT: &str = "_ZN5tokio7runtime7context7CONTEXT29_$u7b$$u7b$constant$u7d$$u7d$28_$u7b$$u7b$closure\
                                  $u7d$$u7d$3VAL17h0123456789abcdefE";
/// The symbol of the probe's thread-local.
pub(super) const SLOT: &str = "_ZN14ctxtrace_probe4slot4SLOT29_$u7b$$u7b$constant$u7d$$u7d$28_$u7b$$u7b$closure$u7d$$u7d$3VAL\
                               17h0123456789abcdefE";
/// The size in bytes of tokio's thread-local.
pub(super) const CONTEXT_BYTES: u64 = 80;

/// The address, size and alignment of the TLS segment.
#[derive(Clone, Copy)]
pub(super) struct Tls {
    pub(super) address: u64,
    pub(super) size: u64,
    pub(super) align: u64,
}

/// The parts of a synthetic executable.
pub(super) struct Program {
    /// The names, offsets and sizes of the thread-locals.
    pub(super) locals: Vec<(String, u64, u64)>,
    pub(super) tls: Tls,
    /// The type information (`.debug_info`), if there is any.
    pub(super) info: Option<Vec<u8>>,
    /// The bytes of the section `.text`.
    pub(super) text: Vec<u8>,
    /// The names and bytes of further sections.
    pub(super) others: Vec<(&'static str, Vec<u8>)>,
}

impl Program {
    /// Returns a program with tokio, in the layout that rustc 1.95 generates.
    pub(super) fn with_tokio(info: Option<Vec<u8>>) -> Self {
        let tls = Tls {
            address: 0x4000,
            size: 200,
            align: 8,
        };
        Self {
            locals: vec![(CONTEXT.into(), 40, CONTEXT_BYTES)],
            tls,
            info,
            text: b"/registry/tokio-1.54.1/src/runtime/park.rs\0".to_vec(),
            others: Vec::new(),
        }
    }

    /// Returns a program as the Go linker links it: with Go's build information, and without a symbol for a thread-local.
    pub(super) fn of_go(info: Option<Vec<u8>>, buildinfo: Vec<u8>) -> Self {
        let tls = Tls {
            address: 0,
            size: 0,
            align: 0,
        };
        Self {
            locals: vec![],
            tls,
            info,
            text: vec![],
            others: vec![(".go.buildinfo", buildinfo)],
        }
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        const HEADERS: u64 = 64 + 2 * 56;
        let mut strings = vec![0];
        let mut symbols = vec![0; 24];
        for (name, offset, size) in &self.locals {
            symbols.extend((strings.len() as u32).to_le_bytes());
            symbols.extend([6, 0, 1, 0]);
            symbols.extend(offset.to_le_bytes());
            symbols.extend(size.to_le_bytes());
            strings.extend(name.bytes().chain([0]));
        }
        let mut sections = vec![
            (".symtab", 2, symbols, 2, 24),
            (".strtab", 3, strings, 0, 0),
            (".text", 1, self.text.clone(), 0, 0),
        ];
        for (name, bytes) in &self.others {
            sections.push((name, 1, bytes.clone(), 0, 0));
        }
        if let Some(info) = &self.info {
            sections.push((".debug_info", 1, info.clone(), 0, 0));
            sections.push((".debug_abbrev", 1, ABBREVIATIONS.to_vec(), 0, 0));
        }
        let names: Vec<u8> = sections
            .iter()
            .flat_map(|section| section.0.bytes().chain([0]))
            .collect();
        sections.push(("", 3, [vec![0], names].concat(), 0, 0));

        let mut table = vec![0; 64];
        let mut body: Vec<u8> = Vec::new();
        let mut name_at = 1;
        for (name, kind, bytes, link, entry) in &sections {
            while !body.len().is_multiple_of(8) {
                body.push(0);
            }
            table.extend(u32::to_le_bytes(name_at));
            table.extend(u32::to_le_bytes(*kind));
            for field in [0, 0, HEADERS + body.len() as u64, bytes.len() as u64] {
                table.extend(u64::to_le_bytes(field));
            }
            table.extend(u32::to_le_bytes(*link));
            table.extend(u32::to_le_bytes(1));
            table.extend(u64::to_le_bytes(1));
            table.extend(u64::to_le_bytes(*entry));
            body.extend(bytes);
            name_at += name.len() as u32 + 1;
        }
        while !body.len().is_multiple_of(8) {
            body.push(0);
        }

        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        file.extend([3, 0, 62, 0, 1, 0, 0, 0]);
        for field in [0, 64, HEADERS + body.len() as u64] {
            file.extend(u64::to_le_bytes(field));
        }
        file.extend([0; 4]);
        for field in [64, 56, 2, 64, sections.len() as u16 + 1, sections.len() as u16] {
            file.extend(u16::to_le_bytes(field));
        }
        let length = HEADERS + body.len() as u64;
        let Tls { address, size, align } = self.tls;
        // If the size is 0, there is no TLS segment; its header gets the type `PT_NULL`.
        let tls = if size == 0 { 0 } else { 7_u32 };
        for (kind, fields) in [
            (tls, [0, address, address, 0, size, align]),
            (1, [0, 0, 0, length, length, 4096]),
        ] {
            file.extend(kind.to_le_bytes());
            // The flags: readable and writable.
            file.extend(6_u32.to_le_bytes());
            file.extend(fields.into_iter().flat_map(u64::to_le_bytes));
        }
        file.extend(body);
        file.extend(table);
        file
    }
}

const UNIT: u8 = 1;
const VARIABLE: u8 = 2;
const STRUCTURE: u8 = 3;
const MEMBER: u8 = 4;
const VARIANT_PART: u8 = 5;
const DISCRIMINANT: u8 = 6;
const VARIANT: u8 = 7;
const OTHER_VARIANT: u8 = 8;
const BASE: u8 = 9;
const POINTER: u8 = 10;
const ENUMERATION: u8 = 11;
const ENUMERATOR: u8 = 12;
const POINTER_TO: u8 = 13;
const NAME: u8 = 14;

/// The abbreviations. Each line has a number, a tag, whether there are children, and pairs of attribute and form (string 8,
/// udata 15, ref4 19).
#[rustfmt::skip]
const ABBREVIATIONS: &[u8] = &[
    UNIT, 0x11, 1, 0x03, 8, 0, 0,
    VARIABLE, 0x34, 0, 0x6e, 8, 0x49, 19, 0, 0,
    STRUCTURE, 0x13, 1, 0x03, 8, 0x0b, 15, 0, 0,
    MEMBER, 0x0d, 0, 0x03, 8, 0x49, 19, 0x38, 15, 0, 0,
    VARIANT_PART, 0x33, 1, 0x15, 19, 0, 0,
    DISCRIMINANT, 0x0d, 0, 0x49, 19, 0x38, 15, 0, 0,
    VARIANT, 0x19, 1, 0x16, 15, 0, 0,
    OTHER_VARIANT, 0x19, 1, 0, 0,
    BASE, 0x24, 0, 0x03, 8, 0x0b, 15, 0, 0,
    POINTER, 0x0f, 0, 0x03, 8, 0, 0,
    ENUMERATION, 0x04, 1, 0x03, 8, 0x0b, 15, 0, 0,
    ENUMERATOR, 0x28, 0, 0x03, 8, 0x1c, 15, 0, 0,
    POINTER_TO, 0x0f, 0, 0x03, 8, 0x49, 19, 0, 0,
    NAME, 0x16, 0, 0x03, 8, 0x49, 19, 0, 0,
    0,
];

/// A unit of DWARF 4 to which entries are added. A type is identified by its offset.
pub(super) struct Info {
    bytes: Vec<u8>,
}

impl Info {
    pub(super) fn new(name: &str) -> Self {
        let mut info = Self {
            bytes: vec![0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 8],
        };
        info.entry(UNIT, name);
        info
    }

    /// Returns a unit with tokio's structures as in tokio 1.54, except the member of `Context` with the name `without`.
    pub(super) fn of_tokio(without: &str) -> Vec<u8> {
        let mut info = Self::new("/registry/tokio-1.54.1/src/lib.rs/@/tokio.0123-cgu.0");
        let byte = info.base("u8", 1);
        let word = info.base("u64", 8);
        let pointer = info.pointer("*const Context");
        let state = info.enumeration("State", 1, &[("Initial", 0), ("Alive", 1), ("Destroyed", 2)]);
        let state = info.cell("Cell<State>", 1, state, 0);

        let nothing = info.structure("None", 0, &[]);
        let arc = info.structure("Handle", 16, &[]);
        let handle = info.choice(
            "Option<Handle>",
            16,
            (word, 0),
            &[("None", Some(2), nothing), ("Some", None, arc)],
        );
        let handle = info.cell("RefCell<Option<Handle>>", 24, handle, 8);
        let current = info.structure("HandleCell", 32, &[("handle", handle, 0), ("depth", word, 24)]);
        let inner = info.cell("Cell<*const Context>", 8, pointer, 0);
        let scheduler = info.structure("Scoped<Context>", 8, &[("inner", inner, 0)]);
        let id = info.structure("Id", 8, &[("__0", word, 0)]);
        let some = info.structure("Some", 8, &[("__0", id, 0)]);
        let id = info.choice(
            "Option<Id>",
            8,
            (word, 0),
            &[("None", Some(0), nothing), ("Some", None, some)],
        );
        let id = info.cell("Cell<Option<Id>>", 8, id, 0);
        let entered = info.structure("Entered", 1, &[("allow_block_in_place", byte, 0)]);
        let variants = [("Entered", None, entered), ("NotEntered", Some(2), nothing)];
        let runtime = info.choice("EnterRuntime", 1, (byte, 0), &variants);
        let runtime = info.cell("Cell<EnterRuntime>", 1, runtime, 0);
        let some = info.structure("Some", 2, &[("__0", byte, 1)]);
        let variants = [("None", Some(0), nothing), ("Some", Some(1), some)];
        let budget = info.choice("Option<u8>", 2, (byte, 0), &variants);
        let budget = info.structure("Budget", 2, &[("__0", budget, 0)]);
        let budget = info.cell("Cell<Budget>", 2, budget, 0);

        let members = [
            ("current", current, 0),
            ("scheduler", scheduler, 40),
            ("current_task_id", id, 48),
            ("budget", budget, 68),
            ("runtime", runtime, 70),
        ];
        let members: Vec<_> = members.into_iter().filter(|(name, _, _)| *name != without).collect();
        let context = info.structure("Context", 72, &members);
        let context = info.cell("UnsafeCell<Context>", 72, context, 0);
        let storage = info.structure(
            "Storage<Context>",
            CONTEXT_BYTES,
            &[("val", context, 0), ("state", state, 72)],
        );
        info.finish(CONTEXT, storage)
    }

    /// Returns a unit of a program that uses only tokio's channels. Its thread-local has no destructor and therefore no wrapper.
    pub(super) fn of_tokio_without_runtime() -> Vec<u8> {
        let mut info = Self::new("/registry/tokio-1.54.1/src/lib.rs/@/tokio.0123-cgu.0");
        let budget = info.base("u8", 1);
        let context = info.structure("Context", CONTEXT_BYTES, &[("budget", budget, 0)]);
        info.finish(CONTEXT, context)
    }

    /// Returns a unit with Go's two structures as in Go 1.27, except the member with the name `without`.
    pub(super) fn of_go(without: &str) -> Vec<u8> {
        let mut info = Self::new("runtime");
        let number = info.base("uint64", 8);
        let to_g = info.pointer("*runtime.g");
        let members = [("g0", to_g, 0), ("curg", to_g, 184)];
        let members: Vec<_> = members.into_iter().filter(|(name, _, _)| *name != without).collect();
        let m = info.structure("runtime.m", 1_832, &members);
        // Go writes a typedef for each type, and the type itself has the same name.
        let m = info.named(NAME, "runtime.m", m);
        let to_m = info.named(POINTER_TO, "*runtime.m", m);
        let members = [("m", to_m, 48), ("goid", number, 152), ("startpc", number, 304)];
        let members: Vec<_> = members.into_iter().filter(|(name, _, _)| *name != without).collect();
        let g = info.structure("runtime.g", 456, &members);
        info.finish("runtime.m0", g)
    }

    fn named(&mut self, kind: u8, name: &str, of: u32) -> u32 {
        let at = self.entry(kind, name);
        self.reference(of);
        at
    }

    fn base(&mut self, name: &str, size: u64) -> u32 {
        let at = self.entry(BASE, name);
        self.number(size);
        at
    }

    fn pointer(&mut self, name: &str) -> u32 {
        self.entry(POINTER, name)
    }

    fn cell(&mut self, name: &str, size: u64, of: u32, offset: u64) -> u32 {
        self.structure(name, size, &[("value", of, offset)])
    }

    fn structure(&mut self, name: &str, size: u64, members: &[(&str, u32, u64)]) -> u32 {
        let at = self.entry(STRUCTURE, name);
        self.number(size);
        for (name, of, offset) in members {
            self.member(name, *of, *offset);
        }
        self.bytes.push(0);
        at
    }

    fn enumeration(&mut self, name: &str, size: u64, values: &[(&str, u64)]) -> u32 {
        let at = self.entry(ENUMERATION, name);
        self.number(size);
        for (name, value) in values {
            self.entry(ENUMERATOR, name);
            self.number(*value);
        }
        self.bytes.push(0);
        at
    }

    /// Adds an enumeration. `tag` is the type and the offset of the discriminant.
    fn choice(&mut self, name: &str, size: u64, tag: (u32, u64), variants: &[(&str, Option<u64>, u32)]) -> u32 {
        let at = self.entry(STRUCTURE, name);
        self.number(size);
        self.bytes.push(VARIANT_PART);
        self.reference(self.bytes.len() as u32 + 4);
        self.bytes.push(DISCRIMINANT);
        self.reference(tag.0);
        self.number(tag.1);
        for (name, value, of) in variants {
            match value {
                Some(value) => {
                    self.bytes.push(VARIANT);
                    self.number(*value);
                }
                None => self.bytes.push(OTHER_VARIANT),
            }
            self.member(name, *of, 0);
            self.bytes.push(0);
        }
        self.bytes.extend([0, 0]);
        at
    }

    fn finish(mut self, symbol: &str, of: u32) -> Vec<u8> {
        self.entry(VARIABLE, symbol);
        self.reference(of);
        self.bytes.push(0);
        let length = self.bytes.len() as u32 - 4;
        self.bytes[..4].copy_from_slice(&length.to_le_bytes());
        self.bytes
    }

    fn member(&mut self, name: &str, of: u32, offset: u64) {
        self.entry(MEMBER, name);
        self.reference(of);
        self.number(offset);
    }

    fn entry(&mut self, number: u8, name: &str) -> u32 {
        let at = self.bytes.len() as u32;
        self.bytes.push(number);
        self.bytes.extend(name.bytes().chain([0]));
        at
    }

    fn number(&mut self, number: u64) {
        let mut rest = number;
        while rest >= 128 {
            self.bytes.push(rest as u8 | 128);
            rest >>= 7;
        }
        self.bytes.push(rest as u8);
    }

    fn reference(&mut self, to: u32) {
        self.bytes.extend(to.to_le_bytes());
    }
}

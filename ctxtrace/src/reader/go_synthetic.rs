//! A synthetic Go program of four kilobytes, written byte by byte: code, table of functions, module record and funcdata in one
//! segment.

use super::go_functions::GoFunctions;
use super::loaded::Loaded;

/// Address of the code, which begins the segment.
pub(super) const CODE: u64 = 0x10000;
/// Address of the table of functions. The table extends to the module record.
pub(super) const TABLE: u64 = CODE + 0x500;
/// Address of the module record.
pub(super) const MODULE: u64 = CODE + 0xd00;
/// Addresses of the funcdata: before the table, or in it, as in newer versions.
const FUNCDATA_BEFORE: u64 = CODE + 0x400;
const FUNCDATA_INSIDE: u64 = CODE + 0xc00;
const END: u64 = CODE + 0x1000;

/// Size of each function in bytes.
const FUNCTION_BYTES: usize = 0x40;
/// Offsets in the table of the names and of `functab`.
const NAMES_AT: usize = 72;
const FUNCTAB_AT: usize = 400;

/// Versions with different layouts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    Go118,
    Go120,
    Go127,
}

struct SyntheticFunction {
    name: String,
    kind: u8,
    code: Vec<u8>,
    inlined: Option<String>,
}

/// The program. Its table does not say where the text begins.
pub(super) struct GoProgram {
    version: Version,
    functions: Vec<SyntheticFunction>,
}

impl GoProgram {
    /// Creates a program with some functions that call nothing.
    pub(super) fn new(version: Version) -> Self {
        let functions = Vec::new();
        let mut program = Self { version, functions };
        program.function("runtime.deferreturn", program.wrapper_kind());
        for name in [
            "runtime.morestack",
            "runtime.panicwrap",
            "main.nap",
            "main.courier",
            "main.(*van).deliver",
        ] {
            program.function(name, 0);
        }
        program
    }

    /// The mark of wrappers in this version.
    pub(super) fn wrapper_kind(&self) -> u8 {
        if self.version == Version::Go127 { 23 } else { 21 }
    }

    /// Adds a function.
    pub(super) fn function(&mut self, name: &str, kind: u8) {
        self.functions.push(SyntheticFunction {
            name: name.to_owned(),
            kind,
            code: Vec::new(),
            inlined: None,
        });
    }

    /// The address of a function. A function that is not yet there gets the next free address, so calls can be added before their
    /// target.
    pub(super) fn start(&self, name: &str) -> u64 {
        let index = self.functions.iter().position(|function| function.name == name);
        CODE + (index.unwrap_or(self.functions.len()) * FUNCTION_BYTES) as u64
    }

    pub(super) fn call(&mut self, from: &str, to: &str) {
        self.call_behind(from, to, 0);
    }

    /// Adds a call whose target is this many bytes after the first byte of a function.
    pub(super) fn call_behind(&mut self, from: &str, to: &str, bytes: u64) {
        let target = self.start(to) + bytes;
        self.instruction(from, 0xe8, target);
    }

    pub(super) fn jump(&mut self, from: &str, to: &str) {
        let target = self.start(to);
        self.instruction(from, 0xe9, target);
    }

    /// Records that one function is inlined into another.
    pub(super) fn inline(&mut self, into: &str, name: &str) {
        self.written(into).inlined = Some(name.to_owned());
    }

    fn instruction(&mut self, from: &str, code: u8, target: u64) {
        let start = self.start(from);
        let function = self.written(from);
        let behind = start + function.code.len() as u64 + 5;
        function.code.push(code);
        function.code.extend((target.wrapping_sub(behind) as i32).to_le_bytes());
    }

    fn written(&mut self, name: &str) -> &mut SyntheticFunction {
        let mut functions = self.functions.iter_mut();
        functions
            .find(|function| function.name == name)
            .expect("the function was added")
    }

    /// The address of the funcdata.
    pub(super) fn funcdata(&self) -> u64 {
        if self.version == Version::Go127 {
            FUNCDATA_INSIDE
        } else {
            FUNCDATA_BEFORE
        }
    }

    /// Parses the table of functions.
    pub(super) fn functions<'a>(&self, bytes: &'a [u8], loaded: &Loaded<'_>) -> Option<GoFunctions<'a>> {
        let table = &bytes[(TABLE - CODE) as usize..(MODULE - CODE) as usize];
        GoFunctions::new(table, TABLE, loaded)
    }

    /// The bytes of the segment.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let (table, funcdata) = self.table_and_funcdata();
        let mut bytes = Vec::new();
        for function in &self.functions {
            let start = bytes.len();
            bytes.extend(&function.code);
            bytes.resize(start + FUNCTION_BYTES, 0xcc);
        }
        let mut parts = [
            (TABLE, table),
            (MODULE, self.module()),
            (self.funcdata(), funcdata),
            (END, vec![]),
        ];
        parts.sort_by_key(|(address, _)| *address);
        for (address, part) in parts {
            assert!(bytes.len() as u64 <= address - CODE, "the part is too large");
            bytes.resize((address - CODE) as usize, 0);
            bytes.extend(part);
        }
        bytes
    }

    fn text_end(&self) -> u64 {
        (self.functions.len() * FUNCTION_BYTES) as u64
    }

    fn table_and_funcdata(&self) -> (Vec<u8>, Vec<u8>) {
        let is_old = self.version == Version::Go118;
        let magic: u32 = if is_old { 0xffff_fff0 } else { 0xffff_fff1 };
        let mut table = magic.to_le_bytes().to_vec();
        table.extend([0, 0, 1, 8]);
        let count = self.functions.len();
        for word in [count, 0, 0, NAMES_AT, 0, 0, 0, FUNCTAB_AT] {
            table.extend((word as u64).to_le_bytes());
        }
        let mut names = Vec::new();
        for function in &self.functions {
            names.push((table.len() - NAMES_AT) as u32);
            table.extend(function.name.as_bytes());
            table.push(0);
        }
        let name_of = |name: &str| {
            let index = self.functions.iter().position(|function| function.name == name);
            names[index.expect("the function was added")]
        };
        assert!(table.len() <= FUNCTAB_AT, "the part is too large");
        table.resize(FUNCTAB_AT, 0);
        let mut records: Vec<u8> = Vec::new();
        let mut funcdata = vec![0; 8];
        let functab_bytes = 8 * (count + 1);
        for (index, function) in self.functions.iter().enumerate() {
            let start = (index * FUNCTION_BYTES) as u32;
            table.extend(start.to_le_bytes());
            table.extend(((functab_bytes + records.len()) as u32).to_le_bytes());
            let calls_at = funcdata.len() as u32;
            let mut words = vec![start, names[index], 0, 0, 0, 0, 0, 1, 0];
            if !is_old {
                words.push(0);
            }
            records.extend(words.into_iter().flat_map(u32::to_le_bytes));
            records.extend([function.kind, 0, 0, 4]);
            let mut data = [0, 0, 0, 0, u32::MAX];
            if let Some(name) = &function.inlined {
                data[4] = calls_at;
                // The second entry names the first function; no lookup may return it.
                let call = |name| {
                    if is_old {
                        vec![0, 0, 0, name, 0]
                    } else {
                        vec![0, name, 0, 0]
                    }
                };
                let calls = [call(name_of(name)), call(names[0])].concat();
                funcdata.extend(calls.into_iter().flat_map(u32::to_le_bytes));
            }
            records.extend(data.into_iter().flat_map(u32::to_le_bytes));
        }
        table.extend((self.text_end() as u32).to_le_bytes());
        table.extend([0; 4]);
        table.extend(records);
        (table, funcdata)
    }

    fn module(&self) -> Vec<u8> {
        let mut words = vec![0; 60];
        words[0] = TABLE;
        words[16] = TABLE + FUNCTAB_AT as u64;
        words[17] = self.functions.len() as u64 + 1;
        words[18] = words[17];
        words[20] = CODE;
        words[21] = CODE + self.text_end();
        words[22] = CODE;
        // The word before the funcdata is not funcdata but the beginning of the constants.
        let funcdata = match self.version {
            Version::Go118 => 38,
            Version::Go120 => 40,
            Version::Go127 => 43,
        };
        words[funcdata - 1] = CODE;
        words[funcdata] = self.funcdata();
        let mut list = funcdata + 1;
        if self.version == Version::Go127 {
            words[list] = MODULE;
            list += 1;
        }
        words[list..list + 3].copy_from_slice(&[CODE, 2, 2]);
        words.into_iter().flat_map(u64::to_le_bytes).collect()
    }
}

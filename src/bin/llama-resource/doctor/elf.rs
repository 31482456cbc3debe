//! One ELF file: what it needs, and which llama.cpp symbols it defines, imports and calls through its own tables.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};

use object::read::ReadCache;
use object::read::elf::{Dyn, FileHeader, ProgramHeader, Rela, SectionHeader, SectionTable, Sym};
use object::{Endianness, elf};

type Header = elf::FileHeader64<Endianness>;
type Data<'a> = &'a ReadCache<File>;
type Sections<'a> = SectionTable<'a, Header, Data<'a>>;

/// Text that every ggml build holds, stripped or not.
const GGML_TEXT: &[u8] = b"GGML_ASSERT(";

/// What an ELF file says about itself.
#[derive(Clone, Debug, Default)]
pub struct Object {
    /// Where it is.
    pub path: PathBuf,
    /// It names a program interpreter: a dynamically linked executable.
    pub has_interpreter: bool,
    /// It has a dynamic section. An executable without one is statically linked.
    pub is_dynamic: bool,
    /// ELF machine number.
    pub machine: u16,
    /// DT_SONAME.
    pub soname: Option<String>,
    /// DT_NEEDED, in order.
    pub needed: Vec<String>,
    /// DT_RPATH, unexpanded.
    pub rpath: Vec<String>,
    /// DT_RUNPATH, unexpanded.
    pub runpath: Vec<String>,
    /// Linked with -Bsymbolic: its own calls never leave it.
    pub is_symbolic: bool,
    /// Symbols of llama.cpp that it exports.
    pub defines: BTreeSet<String>,
    /// Symbols of llama.cpp that it takes from elsewhere.
    pub imports: BTreeSet<String>,
    /// Symbols of its own that it reaches through PLT or GOT, so that a preloaded definition comes first.
    pub own_calls: BTreeSet<String>,
    /// It imports `dlopen`: it can load libraries that are named nowhere.
    pub imports_dlopen: bool,
    /// Code of ggml is inside, exported or not.
    pub has_ggml_inside: bool,
    /// What its `ggml_tensor_overhead` returns, where the code says so: the size of a tensor and 32 bytes.
    pub tensor_overhead: Option<u64>,
    /// Folders that its constants name and that exist, of a library that opens backends: GGML_BACKEND_DIR of its build
    /// is one of them.
    pub named_folders: Vec<PathBuf>,
}

impl Object {
    /// Reads the file.
    pub fn read(path: &Path) -> Result<Self, String> {
        let say = |what: &str, why: &dyn std::fmt::Display| format!("cannot {what} `{}`: {why}", path.display());
        let mut file = File::open(path).map_err(|e| say("open", &e))?;
        let mut magic = [0_u8; 4];
        std::io::Read::read_exact(&mut file, &mut magic).map_err(|e| say("read", &e))?;
        if magic[..2] == *b"#!" {
            return Err(format!("`{}` is a script: name the program that its first line starts", path.display()));
        }
        if magic != *b"\x7fELF" {
            return Err(format!("`{}` is no ELF file: expected a Linux program or library", path.display()));
        }
        let cache = ReadCache::new(file);
        let mut found = Self { path: path.to_owned(), ..Self::default() };
        found.fill(&cache).map_err(|e| say("understand the 64-bit ELF file", &e))?;
        Ok(found)
    }

    /// File name, for messages.
    pub fn name(&self) -> String {
        self.path.file_name().map_or_else(|| self.path.display().to_string(), |n| n.to_string_lossy().into_owned())
    }

    fn fill(&mut self, data: Data<'_>) -> object::Result<()> {
        let header = Header::parse(data)?;
        let endian = header.endian()?;
        self.machine = header.e_machine(endian).0;
        let segments = header.program_headers(endian, data)?;
        self.has_interpreter = segments.iter().any(|s| s.p_type(endian) == elf::PT_INTERP);
        self.is_dynamic = segments.iter().any(|s| s.p_type(endian) == elf::PT_DYNAMIC);
        let sections = header.sections(endian, data)?;
        self.dynamic(endian, data, &sections)?;
        self.symbols(endian, data, &sections)?;
        self.has_ggml_inside = self.defines.iter().any(|s| s.starts_with("ggml_"))
            || static_ggml_symbol(endian, data, &sections)?
            || read_only_text(endian, data, &sections)?;
        if self.defines.contains("ggml_tensor_overhead") {
            self.tensor_overhead =
                code_of("ggml_tensor_overhead", endian, data, &sections)?.and_then(constant_returned);
        }
        if self.defines.contains("ggml_backend_load_all") {
            self.named_folders = folders_named(rodata(endian, data, &sections)?);
        }
        Ok(())
    }

    fn dynamic(&mut self, endian: Endianness, data: Data<'_>, sections: &Sections<'_>) -> object::Result<()> {
        let Some((entries, link)) = sections.dynamic(endian, data)? else { return Ok(()) };
        let strings = sections.strings(endian, data, link)?;
        for entry in entries {
            let value = entry.d_val(endian);
            // A name outside the string table names nothing; the linker would refuse the file.
            let text = || {
                let bytes = u32::try_from(value).ok().and_then(|offset| strings.get(offset).ok());
                String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned()
            };
            let paths = |text: String| text.split(':').filter(|p| !p.is_empty()).map(str::to_owned).collect();
            match entry.d_tag(endian) {
                elf::DT_NEEDED => self.needed.push(text()),
                elf::DT_SONAME => self.soname = Some(text()),
                elf::DT_RPATH => self.rpath = paths(text()),
                elf::DT_RUNPATH => self.runpath = paths(text()),
                elf::DT_SYMBOLIC => self.is_symbolic = true,
                elf::DT_FLAGS => self.is_symbolic |= value & elf::DF_SYMBOLIC.0 != 0,
                _ => {}
            }
        }
        Ok(())
    }

    fn symbols(&mut self, endian: Endianness, data: Data<'_>, sections: &Sections<'_>) -> object::Result<()> {
        let symbols = sections.symbols(endian, data, elf::SHT_DYNSYM)?;
        for symbol in symbols.iter() {
            let name = String::from_utf8_lossy(symbols.symbol_name(endian, symbol)?).into_owned();
            let is_undefined = symbol.is_undefined(endian);
            self.imports_dlopen |= is_undefined && name == "dlopen";
            if !is_llama_cpp(&name) || symbol.st_bind() == elf::STB_LOCAL {
                continue;
            }
            // A protected or hidden symbol can be imported, but never replaced for its own library.
            if is_undefined {
                self.imports.insert(name);
            } else {
                self.defines.insert(name);
            }
        }
        for section in sections.iter() {
            let Some((relocations, _)) = section.rela(endian, data)? else { continue };
            for relocation in relocations {
                let index = relocation.symbol(endian, false);
                let Some(index) = index else { continue };
                let Ok(symbol) = symbols.symbol(index) else { continue };
                let name = String::from_utf8_lossy(symbols.symbol_name(endian, symbol)?).into_owned();
                if self.defines.contains(&name) {
                    self.own_calls.insert(name);
                }
            }
        }
        Ok(())
    }
}

fn is_llama_cpp(name: &str) -> bool {
    name.starts_with("ggml_") || name.starts_with("llama_")
}

/// A program that was not stripped names its static functions.
fn static_ggml_symbol(endian: Endianness, data: Data<'_>, sections: &Sections<'_>) -> object::Result<bool> {
    let symbols = sections.symbols(endian, data, elf::SHT_SYMTAB)?;
    let is_ours = |symbol: &elf::Sym64<Endianness>| {
        !symbol.is_undefined(endian) && symbols.symbol_name(endian, symbol).is_ok_and(|n| n.starts_with(b"ggml_"))
    };
    Ok(symbols.iter().any(is_ours))
}

/// A stripped one still holds the texts of its assertions.
fn read_only_text(endian: Endianness, data: Data<'_>, sections: &Sections<'_>) -> object::Result<bool> {
    Ok(rodata(endian, data, sections)?.windows(GGML_TEXT.len()).any(|w| w == GGML_TEXT))
}

fn rodata<'a>(endian: Endianness, data: Data<'a>, sections: &Sections<'a>) -> object::Result<&'a [u8]> {
    let names = |section: &elf::SectionHeader64<Endianness>| sections.section_name(endian, section).unwrap_or(b"");
    let Some(section) = sections.iter().find(|s| names(s) == b".rodata") else { return Ok(&[]) };
    section.data(endian, data)
}

/// Absolute paths among the constants that are folders here.
fn folders_named(constants: &[u8]) -> Vec<PathBuf> {
    let texts = constants.split(|&b| b == 0).filter(|t| t.len() > 1 && t.len() < 4096 && t[0] == b'/');
    let paths = texts.filter_map(|t| std::str::from_utf8(t).ok()).map(PathBuf::from);
    paths.filter(|p| p.is_dir()).collect()
}

/// Bytes of a function from its beginning on.
fn code_of<'a>(
    name: &str,
    endian: Endianness,
    data: Data<'a>,
    sections: &Sections<'a>,
) -> object::Result<Option<&'a [u8]>> {
    let symbols = sections.symbols(endian, data, elf::SHT_DYNSYM)?;
    let is_it = |s: &&elf::Sym64<Endianness>| symbols.symbol_name(endian, s).is_ok_and(|n| n == name.as_bytes());
    let Some(at) = symbols.iter().find(is_it).map(|s| s.st_value(endian)) else { return Ok(None) };
    let holds = |s: &&elf::SectionHeader64<Endianness>| {
        s.sh_type(endian) == elf::SHT_PROGBITS
            && at.checked_sub(s.sh_addr(endian)).is_some_and(|n| n < s.sh_size(endian))
    };
    let Some(section) = sections.iter().find(holds) else { return Ok(None) };
    let from = usize::try_from(at - section.sh_addr(endian)).unwrap_or(usize::MAX);
    Ok(section.data(endian, data)?.get(from..))
}

/// The constant that a function returns which does nothing else, as compilers write it.
fn constant_returned(mut code: &[u8]) -> Option<u64> {
    // endbr64; push rbp; mov rbp, rsp. On AArch64: bti c.
    for prefix in [&[0xf3, 0x0f, 0x1e, 0xfa][..], &[0x55, 0x48, 0x89, 0xe5], &[0x5f, 0x24, 0x03, 0xd5]] {
        code = code.strip_prefix(prefix).unwrap_or(code);
    }
    match *code {
        // mov eax, imm32; then ret, or pop rbp and ret.
        [0xb8, a, b, c, d, 0xc3 | 0x5d, ..] => Some(u64::from(u32::from_le_bytes([a, b, c, d]))),
        // movz x0, imm16 or movz w0, imm16; ret.
        [a, b, c, d, 0xc0, 0x03, 0x5f, 0xd6, ..] => {
            let word = u32::from_le_bytes([a, b, c, d]);
            (word & 0x7fe0_001f == 0x5280_0000).then(|| u64::from(word >> 5 & 0xffff))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{constant_returned, folders_named};

    #[test]
    fn a_function_that_returns_a_constant_is_read() {
        let ends = [0xb8, 0x70, 1, 0, 0, 0xc3];
        assert_eq!(constant_returned(&ends), Some(368));
        assert_eq!(constant_returned(&[&[0xf3, 0x0f, 0x1e, 0xfa][..], &ends].concat()), Some(368));
        assert_eq!(constant_returned(&[0x55, 0x48, 0x89, 0xe5, 0xb8, 0x70, 1, 0, 0, 0x5d, 0xc3]), Some(368));
        // mov x0, #368; ret, and the same with w0 behind a bti.
        assert_eq!(constant_returned(&[0, 0x2e, 0x80, 0xd2, 0xc0, 3, 0x5f, 0xd6]), Some(368));
        assert_eq!(constant_returned(&[0x5f, 0x24, 3, 0xd5, 0, 0x2e, 0x80, 0x52, 0xc0, 3, 0x5f, 0xd6]), Some(368));
        for other in [&[][..], &[0xb8, 1], &[0xe9, 0, 0, 0, 0], &[0xb8, 1, 0, 0, 0, 0x90]] {
            assert_eq!(constant_returned(other), None, "{other:?}");
        }
    }

    #[test]
    fn folders_are_those_that_exist() {
        let text = b"\0/proc\0no/proc\0/no/such/folder\0/\0/proc/self/exe\0/tmp";
        assert_eq!(folders_named(text), [std::path::PathBuf::from("/proc"), "/tmp".into()]);
    }
}

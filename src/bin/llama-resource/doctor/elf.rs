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
    let names = |section: &elf::SectionHeader64<Endianness>| sections.section_name(endian, section).unwrap_or(b"");
    let Some(section) = sections.iter().find(|s| names(s) == b".rodata") else { return Ok(false) };
    Ok(section.data(endian, data)?.windows(GGML_TEXT.len()).any(|w| w == GGML_TEXT))
}

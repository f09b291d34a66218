// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Functions of the kernel and of its modules.

use crate::setup::Result;

/// By address. Those of a module are there as long as it is loaded.
pub(crate) struct Symbols(Vec<(u64, String)>);

impl Symbols {
    /// Those of now.
    pub(crate) fn read() -> Result<Self> {
        Ok(Self::parse(&std::fs::read_to_string("/proc/kallsyms")?))
    }

    /// None at all.
    pub(super) fn none() -> Self {
        Self(Vec::new())
    }

    fn parse(text: &str) -> Self {
        let mut symbols: Vec<_> = text.lines().filter_map(symbol).collect();
        // The sort is stable: of several names for a function the first one is taken.
        symbols.sort_by_key(|(address, _)| *address);
        symbols.dedup_by_key(|(address, _)| *address);
        Self(symbols)
    }

    pub(super) fn address(&self, function: &str) -> Option<u64> {
        self.0
            .iter()
            .find(|(address, name)| name == function && *address != 0)
            .map(|(address, _)| *address)
    }

    /// The function that an address is in.
    pub(super) fn function(&self, address: u64) -> &str {
        match self.0.partition_point(|(start, _)| *start <= address) {
            0 => "?",
            after => &self.0[after - 1].1,
        }
    }
}

/// The address and the name in a line like `ffffffffc0a01230 t name [module]`, if it is a function.
fn symbol(line: &str) -> Option<(u64, String)> {
    let mut words = line.split_whitespace();
    let address = u64::from_str_radix(words.next()?, 16).ok()?;
    if !matches!(words.next()?, "t" | "T" | "w" | "W") {
        return None;
    }
    let name = words.next()?;
    let module = words.next().unwrap_or_default();
    let name = path(name).unwrap_or_else(|| name.to_string());
    Some((address, format!("{name}{module}")))
}

/// The path in a mangled name of Rust's, such as `crate::module::function`: its identifiers in
/// their order, which leaves out what the types of generic functions are.
fn path(mangled: &str) -> Option<String> {
    let mut rest = mangled.strip_prefix("_R")?;
    let mut identifiers: Vec<&str> = Vec::new();
    while let Some(byte) = rest.bytes().next() {
        if b"sBKLG".contains(&byte) {
            // A disambiguator, a reference to what was named before, a constant, a lifetime; they
            // end with `_`, and have digits that are no lengths.
            if let Some((number, after)) = rest[1..].split_once('_') {
                if number.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
                    rest = after;
                    continue;
                }
            }
        }
        if byte.is_ascii_digit() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let length: usize = rest[..digits].parse().ok()?;
            let name = rest[digits..].strip_prefix('_').unwrap_or(&rest[digits..]);
            identifiers.push(name.get(..length)?);
            rest = &name[length..];
            continue;
        }
        rest = &rest[1..];
    }
    Some(identifiers.join("::"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions() {
        let symbols = Symbols::parse(
            "ffffffff81000000 T _stext\nffffffff81000010 t first\nffffffff81000010 t alias\n\
             ffffffff81000020 D data\nffffffffc0000000 t there\t[module]\n",
        );
        assert_eq!(symbols.address("first"), Some(0xffff_ffff_8100_0010));
        assert_eq!(symbols.function(0xffff_ffff_8100_0008), "_stext");
        assert_eq!(symbols.function(0xffff_ffff_8100_0028), "first");
        assert_eq!(symbols.function(0xffff_ffff_c000_0001), "there[module]");
        assert_eq!(symbols.function(1), "?");
    }

    #[test]
    fn paths() {
        assert_eq!(
            path("_RNvMs2_NtNtCs9AbC1_4user9transport7controlNtB5_5Queue4kick").as_deref(),
            Some("user::transport::control::Queue::kick")
        );
        assert_eq!(path("schedule"), None);
    }
}

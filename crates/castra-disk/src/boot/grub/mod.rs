//! `grub.cfg`, as `grub-mkconfig` makes it.
//!
//! Conditions are not evaluated: entries and settings of all branches are seen. That is right for
//! generated files, whose branches differ in what they load to show a menu.

mod words;

use super::variables::Variables;
use words::{Token, Word, tokens};

/// Deepest nesting of submenus; GRUB's own are one deep.
const MAX_DEPTH: usize = 8;
/// Maximum number of entries.
const MAX_ENTRIES: usize = 256;

/// An entry of the menu that boots Linux with an initramfs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MenuEntry {
    pub(super) title: String,
    /// Filesystem that contains the files.
    pub(super) on: Search,
    pub(super) kernel: String,
    /// Files that are concatenated.
    pub(super) initramfs: Vec<String>,
    pub(super) options: String,
}

/// Filesystem for which `search` looks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) enum Search {
    /// The one that contains `grub.cfg`.
    #[default]
    Same,
    Uuid(String),
    Label(String),
}

/// Parses a configuration: the default entry, then all others in the order of the menu. Adds the
/// variables that it sets.
pub(super) fn parse(script: &str, variables: &mut Variables) -> Vec<MenuEntry> {
    let tokens = tokens(script);
    let mut parser = Parser { tokens: &tokens, variables, default: String::new(), count: 0 };
    let items = parser.items(0);
    let default = parser.default;
    let mut entries = Vec::new();
    collect(&items, &mut entries);
    if let Some(chosen) = choose(&items, &default) {
        // Stable: the others keep their order.
        entries.sort_by_key(|entry| !std::ptr::eq(*entry, chosen));
    }
    entries.into_iter().cloned().collect()
}

/// An entry or a submenu.
struct Item {
    title: String,
    id: Option<String>,
    content: ItemContent,
}

enum ItemContent {
    Entry(Option<MenuEntry>),
    Submenu(Vec<Item>),
}

fn collect<'a>(items: &'a [Item], entries: &mut Vec<&'a MenuEntry>) {
    for item in items {
        match &item.content {
            ItemContent::Entry(entry) => entries.extend(entry),
            ItemContent::Submenu(items) => collect(items, entries),
        }
    }
}

/// Returns the entry that `default` names: by its number, identifier or title, with `>` between
/// those of a submenu and of its entry.
fn choose<'a>(items: &'a [Item], default: &str) -> Option<&'a MenuEntry> {
    let (name, rest) = default.split_once('>').unwrap_or((default, "0"));
    let by_number = name.parse().ok().and_then(|number: usize| items.get(number));
    let is_named = |item: &&Item| item.id.as_deref() == Some(name) || item.title == name;
    match &by_number.or_else(|| items.iter().find(is_named))?.content {
        ItemContent::Entry(entry) => entry.as_ref(),
        ItemContent::Submenu(items) => choose(items, rest),
    }
}

struct Parser<'a> {
    tokens: &'a [Token],
    variables: &'a mut Variables,
    default: String,
    count: usize,
}

impl<'a> Parser<'a> {
    /// Parses commands up to the end of the block that contains them.
    fn items(&mut self, depth: usize) -> Vec<Item> {
        let mut items = Vec::new();
        while let Some((words, opens)) = self.command() {
            let name = words.first().map(|word| word.raw()).unwrap_or_default();
            match name.as_str() {
                "menuentry" | "submenu" if opens && self.count < MAX_ENTRIES => {
                    self.count += 1;
                    let (title, id) = self.heading(&words[1..]);
                    let content = if name == "menuentry" {
                        ItemContent::Entry(self.entry(&title))
                    } else if depth < MAX_DEPTH {
                        ItemContent::Submenu(self.items(depth + 1))
                    } else {
                        break;
                    };
                    items.push(Item { title, id, content });
                }
                _ if opens => self.skip_block(),
                "set" => self.set(&words[1..]),
                _ => {}
            }
        }
        items
    }

    /// Takes the next command of this block, and `true` if it opens a block; `None` at the end.
    fn command(&mut self) -> Option<(Vec<&'a Word>, bool)> {
        let mut words = Vec::new();
        loop {
            let (token, rest) = self.tokens.split_first()?;
            self.tokens = rest;
            match token {
                Token::Word(word) => words.push(word),
                Token::Open => return Some((words, true)),
                Token::End if words.is_empty() => {}
                Token::End => return Some((words, false)),
                Token::Close => return None,
            }
        }
    }

    fn skip_block(&mut self) {
        let mut depth = 1;
        while depth > 0 {
            let Some((token, rest)) = self.tokens.split_first() else { return };
            self.tokens = rest;
            match token {
                Token::Open => depth += 1,
                Token::Close => depth -= 1,
                Token::Word(_) | Token::End => {}
            }
        }
    }

    fn text(&self, word: &Word) -> String {
        word.text(|text| self.variables.expand(text))
    }

    fn set(&mut self, words: &[&Word]) {
        let Some(text) = words.first().map(|word| self.text(word)) else { return };
        let Some((name, value)) = text.split_once('=') else { return };
        if name == "default" {
            // The branch for one boot only has no value.
            if !value.is_empty() {
                value.clone_into(&mut self.default);
            }
        } else {
            self.variables.set_default(name.to_owned(), value.to_owned());
        }
    }

    /// Returns title and identifier of an entry or a submenu.
    fn heading(&self, words: &[&Word]) -> (String, Option<String>) {
        let (mut title, mut id) = (None, None);
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match word.raw().as_str() {
                "--id" | "$menuentry_id_option" | "${menuentry_id_option}" => {
                    id = words.next().map(|word| self.text(word));
                }
                "--class" | "--users" | "--hotkey" => drop(words.next()),
                option if option.starts_with("--") => {}
                _ => title = title.or_else(|| Some(self.text(word))),
            }
        }
        (title.unwrap_or_default(), id)
    }

    /// Parses the commands of an entry: the first `linux` that an `initrd` follows counts.
    fn entry(&mut self, title: &str) -> Option<MenuEntry> {
        let (mut on, mut linux, mut found) = (Search::Same, None, None);
        while let Some((words, opens)) = self.command() {
            if opens {
                self.skip_block();
                continue;
            }
            let name = words.first().map(|word| word.raw()).unwrap_or_default();
            let arguments: Vec<String> = words.iter().skip(1).map(|word| self.text(word)).collect();
            match name.as_str() {
                "linux" | "linuxefi" | "linux16" => linux = Some(arguments),
                "initrd" | "initrdefi" | "initrd16" if found.is_none() => {
                    found = linux.take().map(|linux| (linux, arguments));
                }
                _ if on == Search::Same => on = search(&name, &arguments),
                _ => {}
            }
        }
        let (linux, initramfs) = found?;
        let (kernel, options) = linux.split_first()?;
        Some(MenuEntry {
            title: title.to_owned(),
            on,
            kernel: without_device(kernel).to_owned(),
            initramfs: initramfs.iter().map(|file| without_device(file).to_owned()).collect(),
            options: options.iter().map(|option| quoted(option)).collect::<Vec<_>>().join(" "),
        })
    }
}

/// Interprets `search`; GRUB takes the last word for what is searched.
fn search(name: &str, arguments: &[String]) -> Search {
    let has = |options: [&str; 2]| arguments.iter().any(|it| options.contains(&it.as_str()));
    let (kind, value) = match name {
        "search.fs_uuid" => ("uuid", arguments.first()),
        "search.fs_label" => ("label", arguments.first()),
        "search" if has(["--fs-uuid", "-u"]) => ("uuid", arguments.last()),
        "search" if has(["--label", "-l"]) => ("label", arguments.last()),
        _ => return Search::Same,
    };
    match (kind, value) {
        ("uuid", Some(uuid)) => Search::Uuid(uuid.clone()),
        (_, Some(label)) => Search::Label(label.clone()),
        (_, None) => Search::Same,
    }
}

/// Removes a device, as in `(hd0,gpt2)/boot/vmlinuz`.
fn without_device(path: &str) -> &str {
    let rest = path.strip_prefix('(').and_then(|rest| rest.split_once(')'));
    rest.map_or(path, |(_, path)| path)
}

/// Restores the quotes of an argument that contains blanks.
fn quoted(argument: &str) -> String {
    if argument.contains(char::is_whitespace) { format!("\"{argument}\"") } else { argument.into() }
}

/// Sample of what `grub-mkconfig` makes.
#[cfg(test)]
pub(super) const DEBIAN: &str = r#"
if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="DEFAULT"
fi
function savedefault {
  if [ -z "${boot_once}" ]; then
    saved_entry="${chosen}"
  fi
}
set linux_gfx_mode=auto
menuentry 'Debian GNU/Linux' --class debian --class os $menuentry_id_option 'gnulinux-simple' {
	load_video
	if [ x$grub_platform = xxen ]; then insmod xzio; insmod lzopio; fi
	search --no-floppy --fs-uuid --set=root 1111-2222
	echo	'Loading Linux 6.1.0-13-amd64 ...'
	linux	/boot/vmlinuz-6.1.0-13-amd64 root=UUID=1111-2222 ro  quiet "a=b c"
	echo	'Loading initial ramdisk ...'
	initrd	/boot/ucode.img /boot/initrd.img-6.1.0-13-amd64
}
submenu 'Advanced options' $menuentry_id_option 'gnulinux-advanced' {
	menuentry 'Linux 6.1.0-13' --class os $menuentry_id_option 'gnulinux-6.1.0-13' {
		search --label boot
		linux	($root)/vmlinuz-6.1.0-13 ro
		initrd	(hd0,gpt2)/initrd.img-6.1.0-13
	}
	menuentry 'Linux 6.1.0-9' $menuentry_id_option 'gnulinux-6.1.0-9' {
		if [ "${initrdfail}" = 1 ]; then
		  linux	/vmlinuz-6.1.0-9 ro
		  initrd	/initrd.img-6.1.0-9
		else
		  linux	/vmlinuz-6.1.0-9 ro panic=-1
		fi
		initrd	/initrd.img-6.1.0-9
	}
}
menuentry "UEFI Firmware Settings" {
	fwsetup
}
"#;

#[cfg(test)]
mod tests {
    use super::*;

    fn first(default: &str, variables: &mut Variables) -> MenuEntry {
        parse(&DEBIAN.replace("DEFAULT", default), variables).remove(0)
    }

    #[test]
    fn the_default_entry_is_first() {
        let none = &mut Variables::default();
        let entry = first("0", none);
        let expected = MenuEntry {
            title: "Debian GNU/Linux".to_owned(),
            on: Search::Uuid("1111-2222".to_owned()),
            kernel: "/boot/vmlinuz-6.1.0-13-amd64".to_owned(),
            initramfs: vec![
                "/boot/ucode.img".to_owned(),
                "/boot/initrd.img-6.1.0-13-amd64".to_owned(),
            ],
            options: "root=UUID=1111-2222 ro quiet \"a=b c\"".to_owned(),
        };
        assert_eq!(entry, expected);
        let entry = first("gnulinux-advanced>gnulinux-6.1.0-9", none);
        assert_eq!((entry.title.as_str(), entry.options.as_str()), ("Linux 6.1.0-9", "ro"));
        let entry = first("1", none);
        assert_eq!(entry.on, Search::Label("boot".to_owned()));
        assert_eq!(entry.kernel, "/vmlinuz-6.1.0-13");
        assert_eq!(entry.initramfs, ["/initrd.img-6.1.0-13"]);
        assert_eq!(first("Advanced options>1", none).title, "Linux 6.1.0-9");
        assert_eq!(first("gone", none).title, "Debian GNU/Linux");
    }

    #[test]
    fn the_saved_entry_is_first() {
        let block = "# GRUB Environment Block\nsaved_entry=gnulinux-advanced>gnulinux-6.1.0-9\n";
        let mut variables = Variables::parse(block);
        assert_eq!(first("${saved_entry}", &mut variables).title, "Linux 6.1.0-9");
        assert_eq!(variables.get("linux_gfx_mode"), "auto");
    }

    #[test]
    fn broken_scripts_end() {
        let nested = "submenu a {\n".repeat(100_000);
        assert_eq!(parse(&nested, &mut Variables::default()), []);
        assert_eq!(parse("menuentry a {\nlinux /a\n", &mut Variables::default()), []);
        assert_eq!(parse("}}} menuentry { } {", &mut Variables::default()), []);
    }
}

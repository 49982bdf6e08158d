//! Text that describes a volume group: sections in braces, and `name = value`.

use std::ops::Range;

/// Deepest nesting of sections: that of LVM's own metadata is four.
const MAX_DEPTH: usize = 8;
const SECTOR: u64 = 512;
/// Maximum number of segments of a volume.
const MAX_SEGMENTS: u64 = 4096;

/// A volume group.
pub(super) struct Group {
    pub(super) name: String,
    pub(super) id: String,
    /// Number of changes so far: the larger one is newer.
    pub(super) sequence: u64,
    extent_sectors: u64,
    pub(super) places: Vec<Place>,
    pub(super) volumes: Vec<Volume>,
}

/// A physical volume of the group.
pub(super) struct Place {
    /// Name inside the metadata, such as `pv0`.
    pub(super) name: String,
    /// Identity, without hyphens.
    pub(super) id: String,
    first_sector: u64,
}

/// A logical volume.
pub(super) struct Volume {
    pub(super) name: String,
    /// Segments in order; `None` if the volume is anything but linear.
    pub(super) segments: Option<Vec<Segment>>,
}

/// Contiguous part of a logical volume.
pub(super) struct Segment {
    pub(super) on: String,
    first_extent: u64,
    extents: u64,
}

impl Segment {
    /// Returns the bytes of the physical volume that the segment consists of.
    pub(super) fn bytes(&self, group: &Group, place: &Place) -> Option<Range<u64>> {
        let offset = self.first_extent.checked_mul(group.extent_sectors)?;
        let start = offset.checked_add(place.first_sector)?.checked_mul(SECTOR)?;
        let length = self.extents.checked_mul(group.extent_sectors)?.checked_mul(SECTOR)?;
        Some(start..start.checked_add(length)?)
    }
}

/// Parses the metadata; `None` if it is no description of a group.
pub(super) fn parse(text: &str) -> Option<Group> {
    let root = section(&mut Words { rest: text }, 0)?;
    let (name, group) = root.iter().find_map(|(name, value)| Some((name, value.section()?)))?;
    let places = find(group, "physical_volumes")?.section()?.iter().filter_map(place).collect();
    // A group that has none lacks the section.
    let volumes = find(group, "logical_volumes").and_then(Value::section).unwrap_or_default();
    Some(Group {
        name: name.clone(),
        id: find(group, "id")?.text()?.to_owned(),
        sequence: find(group, "seqno")?.number()?,
        extent_sectors: find(group, "extent_size")?.number()?,
        places,
        volumes: volumes.iter().filter_map(volume).collect(),
    })
}

fn place((name, value): &(String, Value)) -> Option<Place> {
    let section = value.section()?;
    Some(Place {
        name: name.clone(),
        id: find(section, "id")?.text()?.replace('-', ""),
        first_sector: find(section, "pe_start")?.number()?,
    })
}

fn volume((name, value): &(String, Value)) -> Option<Volume> {
    let section = value.section()?;
    // Parts of other volumes, such as the pool of thin ones.
    if !find(section, "status")?.list()?.iter().any(|flag| flag.text() == Some("VISIBLE")) {
        return None;
    }
    Some(Volume { name: name.clone(), segments: segments(section) })
}

fn segments(volume: &[(String, Value)]) -> Option<Vec<Segment>> {
    let count = find(volume, "segment_count")?.number()?;
    let mut next = 0;
    let mut segments = Vec::new();
    for number in 1..=count.min(MAX_SEGMENTS) {
        let section = find(volume, &format!("segment{number}"))?.section()?;
        let has = |name: &str, expected| find(section, name)?.number().filter(|it| *it == expected);
        has("stripe_count", 1)?;
        has("start_extent", next)?;
        let [on, first] = find(section, "stripes")?.list()? else { return None };
        let extents = find(section, "extent_count")?.number()?;
        next = next.checked_add(extents)?;
        let on = on.text()?.to_owned();
        segments.push(Segment { on, first_extent: first.number()?, extents });
    }
    let is_striped = |(name, value): &(String, Value)| {
        let kind = value.section().and_then(|section| find(section, "type")).and_then(Value::text);
        !name.starts_with("segment") || kind.is_none_or(|kind| kind == "striped")
    };
    (count <= MAX_SEGMENTS && volume.iter().all(is_striped)).then_some(segments)
}

enum Value {
    Number(u64),
    Text(String),
    List(Vec<Value>),
    Section(Vec<(String, Value)>),
}

impl Value {
    fn number(&self) -> Option<u64> {
        if let Self::Number(number) = self { Some(*number) } else { None }
    }

    fn text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    fn list(&self) -> Option<&[Value]> {
        if let Self::List(list) = self { Some(list) } else { None }
    }

    fn section(&self) -> Option<&[(String, Value)]> {
        if let Self::Section(section) = self { Some(section) } else { None }
    }
}

fn find<'a>(section: &'a [(String, Value)], name: &str) -> Option<&'a Value> {
    section.iter().find(|(own, _)| own == name).map(|(_, value)| value)
}

/// Parses up to the closing brace, or to the end of the text.
fn section(words: &mut Words<'_>, depth: usize) -> Option<Vec<(String, Value)>> {
    let mut entries = Vec::new();
    while let Some(name) = words.next() {
        if name == "}" && depth > 0 {
            return Some(entries);
        }
        let value = match words.next()? {
            "{" if depth < MAX_DEPTH => Value::Section(section(words, depth + 1)?),
            "=" => value(words)?,
            _ => return None,
        };
        entries.push((name.to_owned(), value));
    }
    (depth == 0).then_some(entries)
}

fn value(words: &mut Words<'_>) -> Option<Value> {
    let word = words.next()?;
    if word != "[" {
        return scalar(word);
    }
    let mut list = Vec::new();
    loop {
        match words.next()? {
            "]" => return Some(Value::List(list)),
            "," => {}
            word => list.push(scalar(word)?),
        }
    }
}

fn scalar(word: &str) -> Option<Value> {
    match word.strip_prefix('"') {
        Some(text) => Some(Value::Text(text.to_owned())),
        // No number that is needed here is negative or a fraction.
        None => Some(word.parse().map_or_else(|_| Value::Text(word.to_owned()), Value::Number)),
    }
}

/// Returns the place of the quotation mark that ends a text; one after a backslash belongs to it.
fn closing_quote(text: &str) -> Option<usize> {
    let mut is_escaped = false;
    text.bytes().position(|byte| {
        let ends = byte == b'"' && !is_escaped;
        is_escaped = byte == b'\\' && !is_escaped;
        ends
    })
}

/// Words of the text. A quoted one begins with its quotation mark, and does not end with it.
struct Words<'a> {
    rest: &'a str,
}

impl<'a> Iterator for Words<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        loop {
            self.rest = self.rest.trim_start();
            let Some(comment) = self.rest.strip_prefix('#') else { break };
            self.rest = comment.split_once('\n').map_or("", |(_, rest)| rest);
        }
        let first = self.rest.chars().next()?;
        let (word, rest) = match first {
            '"' => {
                let end = 1 + closing_quote(&self.rest[1..])?;
                (&self.rest[..end], &self.rest[end + 1..])
            }
            '{' | '}' | '[' | ']' | '=' | ',' => self.rest.split_at(1),
            _ => {
                let ends = |char: char| char.is_whitespace() || "{}[]=,#\"".contains(char);
                self.rest.split_at(self.rest.find(ends).unwrap_or(self.rest.len()))
            }
        };
        self.rest = rest;
        Some(word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group_of(volume: &str) -> String {
        format!(
            "contents = \"Text Format Volume Group\"\ndescription = \"by '-f \\\"a {{\\\"'\"\n\
            vg {{\nid = \"g\" seqno = 3 # newest\n\
            extent_size = 8\nphysical_volumes {{ pv0 {{ id = \"a-b\" pe_start = 2048 }} }}\n\
            logical_volumes {{ root {{ status = [\"READ\", \"VISIBLE\"] {volume} }} }} }}"
        )
    }

    #[test]
    fn a_linear_volume_has_its_bytes() {
        let text = group_of(
            "segment_count = 2 segment1 { start_extent = 0 extent_count = 2 type = \"striped\" \
            stripe_count = 1 stripes = [ \"pv0\", 5 ] } segment2 { start_extent = 2 \
            extent_count = 1 type = \"striped\" stripe_count = 1 stripes = [\"pv0\", 0] }",
        );
        let group = parse(&text).expect("a group");
        assert_eq!((group.name.as_str(), group.sequence), ("vg", 3));
        let [volume] = &group.volumes[..] else { panic!("one volume") };
        let segments = volume.segments.as_ref().expect("linear");
        let bytes = segments.iter().map(|segment| segment.bytes(&group, &group.places[0]));
        let expected = [(2048 + 40) * 512..(2048 + 56) * 512, 2048 * 512..(2048 + 8) * 512];
        assert_eq!(bytes.collect::<Vec<_>>(), expected.map(Some));
        assert_eq!(group.places[0].id, "ab");
    }

    #[test]
    fn other_volumes_are_not_linear() {
        for volume in [
            "segment_count = 1 segment1 { start_extent = 0 extent_count = 2 type = \"thin\" }",
            "segment_count = 1 segment1 { start_extent = 0 extent_count = 2 type = \"striped\" \
            stripe_count = 2 stripes = [\"pv0\", 0, \"pv1\", 0] }",
            "segment_count = 2",
            "segment_count = 99999999999",
        ] {
            let group = parse(&group_of(volume)).expect("a group");
            assert!(group.volumes[0].segments.is_none(), "{volume}");
        }
    }

    #[test]
    fn nesting_ends() {
        assert!(parse(&"a {".repeat(100_000)).is_none());
        assert!(parse("vg { id = [").is_none());
        assert!(parse("").is_none());
    }
}

//! Words of GRUB's script language, with its quotes.

/// Token of a script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token {
    /// Word, as pieces of which some are expanded.
    Word(Word),
    /// End of a command.
    End,
    /// Beginning of a block.
    Open,
    /// End of a block.
    Close,
}

/// A word without its quotes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Word(Vec<Piece>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    /// Text that is taken as it is.
    Literal(String),
    /// Text with variables.
    Expanded(String),
}

impl Word {
    /// Returns the text, with variables replaced.
    pub(super) fn text(&self, expand: impl Fn(&str) -> String) -> String {
        let pieces = self.0.iter().map(|piece| match piece {
            Piece::Literal(text) => text.clone(),
            Piece::Expanded(text) => expand(text),
        });
        pieces.collect()
    }

    /// Returns the text as it is written.
    pub(super) fn raw(&self) -> String {
        self.text(str::to_owned)
    }

    fn push(&mut self, char: char, is_literal: bool) {
        match (self.0.last_mut(), is_literal) {
            (Some(Piece::Literal(text)), true) | (Some(Piece::Expanded(text)), false) => {
                text.push(char);
            }
            (_, true) => self.0.push(Piece::Literal(char.into())),
            (_, false) => self.0.push(Piece::Expanded(char.into())),
        }
    }
}

/// Splits a script into tokens.
pub(super) fn tokens(script: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut word: Option<Word> = None;
    let mut quote = None;
    let mut chars = script.chars().peekable();
    while let Some(char) = chars.next() {
        match (quote, char) {
            (Some('\''), '\'') | (Some('"'), '"') => quote = None,
            (Some('\''), _) => word.get_or_insert_default().push(char, true),
            (_, '\\') => match chars.next() {
                None | Some('\n') => {}
                Some(escaped) => word.get_or_insert_default().push(escaped, true),
            },
            (Some(_), _) => word.get_or_insert_default().push(char, false),
            (None, '\'' | '"') => {
                // Quotes make a word even when nothing is between them.
                word.get_or_insert_default();
                quote = Some(char);
            }
            (None, '#') if word.is_none() => while chars.next_if(|char| *char != '\n').is_some() {},
            (None, '{' | '}') if word.is_none() => {
                tokens.push(if char == '{' { Token::Open } else { Token::Close });
            }
            (None, _) if char.is_whitespace() || char == ';' => {
                tokens.extend(word.take().map(Token::Word));
                if matches!(char, '\n' | ';') {
                    tokens.push(Token::End);
                }
            }
            (None, _) => word.get_or_insert_default().push(char, false),
        }
    }
    tokens.extend(word.map(Token::Word));
    tokens.push(Token::End);
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_and_comments_are_understood() {
        let shown = |script: &str| {
            let shown = tokens(script).into_iter().map(|token| match token {
                Token::Word(word) => word.text(|text| text.replace("$x", "1")),
                Token::End => ";".to_owned(),
                Token::Open => "OPEN".to_owned(),
                Token::Close => "CLOSE".to_owned(),
            });
            shown.collect::<Vec<_>>()
        };
        let words = ["a 1", "$x", "1$x", "", "b c", ";", "d}", ";", "OPEN", "CLOSE", ";"];
        assert_eq!(shown("\"a $x\" '$x' $x\\$x '' b\\ c # e\nd};{ }"), words);
        assert_eq!(shown("'open"), ["open", ";"]);
    }
}

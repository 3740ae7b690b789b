//! A page as it is put together. Markup is what the program itself says (`&'static str`); everything else is text and
//! arrives as text, whatever it holds.

use std::io;

/// Most pages are smaller: room from the start costs nothing, and a text that grows is there twice while it does.
const USUAL_BYTES: usize = 1 << 20;

/// HTML that grows.
#[derive(Debug)]
pub(crate) struct Html(String);

impl Default for Html {
    fn default() -> Self {
        Self(String::with_capacity(USUAL_BYTES))
    }
}

/// Takes JSON and puts it behind a text, with every `<` escaped.
struct WithoutMarkup<'a>(&'a mut String);

impl io::Write for WithoutMarkup<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = std::str::from_utf8(bytes).map_err(io::Error::other)?;
        let mut parts = text.split('<');
        self.0.push_str(parts.next().unwrap_or_default());
        for part in parts {
            self.0.push_str("\\u003c");
            self.0.push_str(part);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Html {
    /// Markup of the program's own.
    pub(crate) fn raw(&mut self, markup: &'static str) -> &mut Self {
        self.0.push_str(markup);
        self
    }

    /// Text, or the value of an attribute between double quotes.
    pub(crate) fn text(&mut self, text: impl AsRef<str>) -> &mut Self {
        for char in text.as_ref().chars() {
            match char {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                // HTML knows no NUL.
                '\0' => self.0.push('\u{fffd}'),
                char => self.0.push(char),
            }
        }
        self
    }

    /// The content of a `script` of type `application/json`. JSON needs `<` only within strings, where it may be
    /// escaped: so no text can end the element or begin a comment.
    pub(crate) fn json(&mut self, value: &impl serde::Serialize) -> Result<&mut Self, serde_json::Error> {
        serde_json::to_writer(WithoutMarkup(&mut self.0), value)?;
        Ok(self)
    }

    /// The page's bytes.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.0.into_bytes()
    }
}

/// A path within the run's folder as an address: relative whatever it is called, so never a scheme, a host or a query.
/// `None` for a path that is absolute or leaves the folder, on any system.
pub(crate) fn relative_address(path: &str) -> Option<String> {
    use std::fmt::Write as _;

    let mut address = String::from(".");
    for part in path.split('/') {
        if part.is_empty() || part == "." || part == ".." || part.contains(['\\', ':', '\0']) {
            return None;
        }
        address.push('/');
        for byte in part.bytes() {
            if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
                address.push(char::from(byte));
            } else {
                // Writing to a String cannot fail.
                let _ = write!(address, "%{byte:02X}");
            }
        }
    }
    Some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_text() {
        let mut html = Html::default();
        html.raw("<p title=\"").text("\" onload='x'").raw("\">").text("</p><script>a & b").raw("</p>");
        let page = String::from_utf8(html.into_bytes()).unwrap();
        assert_eq!(page, "<p title=\"&quot; onload=&#39;x&#39;\">&lt;/p&gt;&lt;script&gt;a &amp; b</p>");
    }

    #[test]
    fn json_cannot_end_its_element_and_is_still_the_same_json() {
        let prompts = ["</script><img onerror=alert(1)>", "<!--<script>", "ä \u{2028} \" \\"];
        let mut html = Html::default();
        html.json(&prompts).unwrap();
        let page = String::from_utf8(html.into_bytes()).unwrap();
        assert!(!page.contains('<'), "{page}");
        assert_eq!(serde_json::from_str::<Vec<String>>(&page).unwrap(), prompts);
    }

    #[test]
    fn an_address_stays_within_the_folder_and_is_never_a_scheme() {
        assert_eq!(relative_address("samples/000500-1.png").as_deref(), Some("./samples/000500-1.png"));
        assert_eq!(relative_address("a b?#ü.png").as_deref(), Some("./a%20b%3F%23%C3%BC.png"));
        for outside in [
            "/etc/passwd",
            "../secret.png",
            "samples/../../x.png",
            "//host/x.png",
            "a\\..\\b.png",
            "C:x.png",
            "javascript:alert(1)",
            "",
        ] {
            assert_eq!(relative_address(outside), None, "{outside}");
        }
    }
}

//! The status page: one file of HTML with its style and its script, which fetches the document once a second.

/// The page, with a mark where the nonce belongs.
const PAGE: &str = include_str!("page.html");

/// Stands in the page where the nonce belongs.
const MARK: &str = "@NONCE@";

/// The page, whose style and script carry this nonce.
pub fn page(nonce: &str) -> String {
    PAGE.replace(MARK, nonce)
}

/// What a browser may do on the page: run what carries the nonce, fetch from this node, and nothing else. Pictures are
/// those within the page.
pub fn content_security_policy(nonce: &str) -> String {
    format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_needs_nothing_from_elsewhere() {
        let page = page("0123");
        assert!(!page.contains(MARK));
        for element in ["<script", "<style"] {
            let all = page.matches(element).count();
            assert_eq!((all, page.matches(&format!("{element} nonce=\"0123\">")).count()), (1, 1), "{element}");
        }
        // The name space of SVG is a name, not a place; the pages of other nodes are linked to, not loaded.
        let text = page.replace("http://www.w3.org/2000/svg", "").replace("`http://${entry.http_address}/`", "");
        for place in ["http:", "https:", "src=", "@import", "url(", "<link rel=\"stylesheet"] {
            assert!(!text.contains(place), "{place}");
        }
        // What the policy forbids, or makes text into markup.
        for word in [" style=", " onclick=", "innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("]
        {
            assert!(!text.contains(word), "{word}");
        }
    }
}

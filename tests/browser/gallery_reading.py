"""Which images the gallery of a page shows, as its cards say."""

import re

_EVERY_PAGE = """() => {
  const found = [], next = document.getElementById("next-page");
  for (;;) {
    found.push([...document.querySelectorAll("#cards > li .about")].map((about) => about.textContent));
    if (next.disabled || !next.checkVisibility()) return found.flat();
    next.click();
  }
}"""


def cards(page):
    """The images of the cards that are there now."""
    return [index_in(text) for text in page.locator("#cards > li .about").all_inner_texts()]


def all_cards(page):
    """The images of the cards from this page of the gallery to the last."""
    return [index_in(text) for text in page.evaluate(_EVERY_PAGE)]


def index_in(text):
    """The image that a card's last line names."""
    return int(re.search(r"#(\d+) ", text)[1])


def by_loss(example, images):
    """Images by falling loss."""
    return sorted(images, key=lambda i: (-example.losses[i], i))

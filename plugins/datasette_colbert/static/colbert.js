// A word of the query lights the words that answer it, and the other way round. Without JavaScript all marks are lit.
"use strict";
{
  // Datasette 0.65 does not say what language its pages are in.
  document.documentElement.lang ||= "en";

  const hits = document.querySelector(".colbert-hits");
  const toolbar = document.querySelector(".colbert-words");
  if (hits && toolbar) pointAtEachOther(hits, toolbar);

  function pointAtEachOther(hits, toolbar) {
    const buttons = [...toolbar.querySelectorAll("button")];
    const marks = [...hits.querySelectorAll("mark")];
    const status = toolbar.querySelector("[role=status]");
    const wordOf = (element) => element?.dataset.queryWord;
    let pressed;

    // Lights the marks that answer a word of the query, and fades the rest; undefined shows all again.
    function light(word) {
      const lit = marks.filter((mark) => wordOf(mark) === word);
      hits.classList.toggle("colbert-chosen", word !== undefined);
      for (const one of [...marks, ...buttons]) one.classList.toggle("colbert-lit", wordOf(one) === word);
      for (const met of hits.querySelectorAll(".colbert-met")) {
        const row = word && met.closest("details").querySelector(`tr[data-query-word="${word}"]`);
        met.textContent = row ? `${row.cells[0].textContent}: ${row.cells[1].textContent} ${row.cells[2].textContent}` : "";
      }
      const rows = new Set(lit.map((mark) => mark.closest("li"))).size;
      status.textContent = word === undefined ? "" : `marked ${lit.length} × in ${rows} of ${hits.children.length} rows`;
    }

    function press(word) {
      pressed = word;
      for (const button of buttons) button.setAttribute("aria-pressed", wordOf(button) === word);
      light(word);
    }

    for (const button of buttons) {
      const word = wordOf(button);
      button.addEventListener("click", () => press(pressed === word ? undefined : word));
      for (const event of ["focus", "pointerenter"]) button.addEventListener(event, () => light(word));
      for (const event of ["blur", "pointerleave"]) button.addEventListener(event, () => light(pressed));
    }

    const tip = document.createElement("div");
    Object.assign(tip, { id: "colbert-tip", className: "colbert-tip", role: "tooltip" });
    let described;

    // Shows which word of the query a mark answers, and how well; null hides that.
    function describe(mark) {
      described?.removeAttribute("aria-describedby");
      described = mark;
      if (!mark) return tip.remove();
      mark.setAttribute("aria-describedby", tip.id);
      tip.textContent = mark.dataset.tip;
      document.body.append(tip);
      const box = mark.getClientRects()[0];
      const left = Math.max(4, Math.min(box.left, document.documentElement.clientWidth - tip.offsetWidth - 4));
      tip.style.left = `${left + scrollX}px`;
      tip.style.top = `${box.bottom + scrollY}px`;
    }

    for (const mark of marks) {
      mark.dataset.tip = mark.title;
      mark.removeAttribute("title");
    }
    const focused = () => document.activeElement.closest("mark");
    document.addEventListener("pointerover", (event) => {
      if (event.target !== tip) describe(event.target.closest(".colbert-hits mark") ?? focused());
    });
    hits.addEventListener("focusin", () => {
      const mark = focused();
      const passage = mark?.closest(".colbert-passage");
      if (passage && mark.offsetTop + mark.offsetHeight > passage.offsetTop + passage.offsetHeight)
        passage.nextElementSibling.open = true;
      describe(mark);
    });
    hits.addEventListener("focusout", () => describe(null));

    // The words of the query are one stop of the Tab key, and so is each passage; arrows go on from there.
    const passages = [...hits.querySelectorAll(".colbert-passage")].map((passage) => [...passage.querySelectorAll("mark")]);
    for (const group of [buttons, ...passages]) {
      group.forEach((one, at) => (one.tabIndex = at ? -1 : 0));
      for (const [at, one] of group.entries())
        one.addEventListener("keydown", (event) => {
          const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: group.length - 1 }[event.key];
          if (to === undefined || !group[to]) return;
          event.preventDefault();
          one.tabIndex = -1;
          group[to].tabIndex = 0;
          group[to].focus();
        });
    }
    document.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      press(undefined);
      describe(null);
    });
    toolbar.hidden = false;
  }
}

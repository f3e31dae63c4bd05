// The token: asked for once, kept until the tab is closed, sent as a header. Actions: asked about, then POSTed.
"use strict";
(() => {
  const KEY = "replicator-token";
  const readToken = () => sessionStorage.getItem(KEY) || "";
  const authorize = (headers) => {
    if (readToken()) headers["Authorization"] = `Bearer ${readToken()}`;
    return headers;
  };

  document.addEventListener("htmx:config:request", (event) => authorize(event.detail.ctx.request.headers));

  const tell = (text, { bad = false, url = "" } = {}) => {
    const notice = document.getElementById("notice");
    notice.className = bad ? "bad" : "";
    notice.replaceChildren(text);
    if (url) {
      const link = document.createElement("a");
      link.href = url;
      link.textContent = "Look at it";
      notice.append(" ", link);
    }
  };

  const ask = (title, text) => new Promise((resolve) => {
    const dialog = document.getElementById("ask");
    const field = dialog.querySelector("input[name=token]");
    dialog.querySelector("#ask-title").textContent = title;
    dialog.querySelector("#ask-text").textContent = text;
    dialog.querySelector("#ask-token").hidden = Boolean(readToken());
    field.value = "";
    dialog.returnValue = "no";
    dialog.addEventListener("close", () => {
      if (field.value.trim()) sessionStorage.setItem(KEY, field.value.trim());
      field.value = "";
      resolve(dialog.returnValue === "yes");
    }, { once: true });
    // Enter in the field presses the first submit button, which would cancel.
    field.onkeydown = (event) => {
      if (event.key !== "Enter") return;
      event.preventDefault();
      dialog.close("yes");
    };
    dialog.showModal();
  });

  const act = async (button) => {
    if (!await ask(`${button.textContent.trim()}?`, button.dataset.confirm)) return;
    let answer;
    try {
      answer = await fetch(button.dataset.action, {
        method: "POST",
        headers: authorize({ "Content-Type": "application/json" }),
        body: button.dataset.body,
      });
    } catch {
      tell("The server does not answer.", { bad: true });
      return;
    }
    const said = await answer.json().catch(() => ({}));
    if (answer.status === 202) {
      tell("The run has been started.", { url: `/runs/${said.execution_id}` });
      return;
    }
    if (answer.status === 401) sessionStorage.removeItem(KEY);
    tell(said.detail || `The server answered ${answer.status}.`, { bad: true });
  };

  // Where pages need the token, a link or a form is followed by a request that carries it.
  const show = async (url, push) => {
    const answer = await fetch(url, { headers: authorize({ "Accept": "text/html" }) });
    if (answer.status === 401) return false;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    if (push) history.pushState(null, "", url);
    document.title = page.title;
    document.body.replaceWith(page.body);
    htmx.process(document.body);
    document.getElementById("main").focus();
    return true;
  };

  const isProtected = () => document.body.hasAttribute("data-protected");
  const follow = (url) => show(url, true).then((shown) => shown || location.reload());

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-action]");
    if (button) {
      act(button);
      return;
    }
    const link = event.target.closest("a[href]");
    const isPlain = event.button === 0 && !event.ctrlKey && !event.metaKey && !event.shiftKey && !event.altKey;
    if (link && isPlain && isProtected() && link.origin === location.origin && !link.getAttribute("href").startsWith("#")) {
      event.preventDefault();
      follow(link.href);
    }
  });

  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (form.id === "token-form") {
      event.preventDefault();
      sessionStorage.setItem(KEY, new FormData(form).get("token").trim());
      enter();
    } else if (isProtected() && form.getAttribute("method") === "get") {
      event.preventDefault();
      const url = new URL(form.action);
      url.search = new URLSearchParams(new FormData(form)).toString();
      follow(url.href);
    }
  });

  window.addEventListener("popstate", () => isProtected() && show(location.href, false));

  const enter = async () => {
    if (readToken() && await show(location.href, false)) return;
    const form = document.getElementById("token-form");
    if (readToken()) document.getElementById("token-error").textContent = "This is not the token.";
    sessionStorage.removeItem(KEY);
    form.hidden = false;
    form.querySelector("input").focus();
  };

  if (document.getElementById("token-form")) enter();
})();

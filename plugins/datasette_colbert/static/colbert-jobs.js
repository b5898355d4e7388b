// Shows how far jobs are. When one ends, other buttons are needed, so the page is loaded again.
const SECONDS = 1;
const MAX_SECONDS = 30;

async function follow(job) {
  const bar = job.querySelector("progress");
  const text = job.querySelector("[data-text]");
  for (let seconds = SECONDS; ; ) {
    await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
    try {
      const response = await fetch(job.dataset.colbertJob);
      const now = await response.json();
      if (!response.ok) {
        text.textContent = now.error;
        return;
      }
      if (now.is_over) {
        location.replace(location.href.split("#")[0]);
        return;
      }
      text.textContent = now.text;
      if (now.stage === "encode" || now.stage === "compare") {
        bar.max = Math.max(1, now.total);
        bar.value = now.done;
      } else {
        bar.removeAttribute("value");
      }
      seconds = SECONDS;
    } catch {
      text.textContent = "The server does not answer; the job may go on. Trying again…";
      seconds = Math.min(2 * seconds, MAX_SECONDS);
    }
  }
}

document.querySelectorAll("[data-colbert-job]").forEach(follow);

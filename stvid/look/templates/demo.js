() => {
  // The demo page: frames that seek the video, the playhead in the plots, the camera, and what screen readers hear.
  const LONGEST = {{ seconds }}; // of a recording
  const find = (place) => document.querySelector(place);
  const video = () => find("#video video");

  // Messages are read out when they change; progress and results politely, errors (role alert) at once.
  const speak = () => {
    const message = find("#message");
    if (!message) return setTimeout(speak, 200);
    message.setAttribute("aria-live", "polite");
  };
  speak();
  document.documentElement.lang = "en";

  // The Tab key leaves a chooser. Gradio would take it for typing, and open the list over the fields below.
  const leaveChooser = (event) => {
    if (event.key !== "Tab" || event.target.getAttribute("role") !== "combobox") return;
    event.stopPropagation();
    for (const list of document.querySelectorAll("ul[role=listbox]")) list.tabIndex = -1; // while it fades away
  };
  document.addEventListener("keydown", leaveChooser, true);

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.id === "camera-start") start();
    else if (button.id === "camera-stop") stop();
    else if (button.dataset.second !== undefined && video()) {
      video().pause();
      video().currentTime = Number(button.dataset.second);
      video().scrollIntoView({ block: "nearest" });
    }
  });

  const follow = (event) => {
    if (event.target !== video()) return;
    for (const plot of document.querySelectorAll("#results svg[data-end]")) {
      const value = (name) => Number(plot.dataset[name]);
      const share = (event.target.currentTime - value("begin")) / Math.max(value("end") - value("begin"), 1e-9);
      const x = value("left") + Math.min(Math.max(share, 0), 1) * (value("right") - value("left"));
      const line = plot.querySelector(".playhead");
      line.setAttribute("x1", x);
      line.setAttribute("x2", x);
      line.setAttribute("visibility", "visible");
    }
  };
  document.addEventListener("timeupdate", follow, true);
  document.addEventListener("seeking", follow, true);

  let recorder = null;
  let stream = null;
  let timer = null;

  const say = (text, error = false) => {
    const line = find("#camera-said");
    line.setAttribute("role", error ? "alert" : "status");
    line.classList.toggle("stvid-error", error);
    line.textContent = text;
  };

  const release = () => {
    clearInterval(timer);
    for (const track of stream ? stream.getTracks() : []) track.stop();
    stream = null;
    recorder = null;
    find("#camera-view").srcObject = null;
    find("#camera-view").hidden = true;
    find("#camera-start").disabled = false;
    find("#camera-stop").disabled = true;
  };

  const REASONS = {
    NotAllowedError:
      "The browser was not allowed to use the camera. Allow it in the settings of this page, beside its address.",
    NotFoundError: "The browser finds no camera. Connect one, or drop a video instead.",
    NotReadableError: "Another program uses the camera. Close it, and try again.",
  };

  const start = async () => {
    if (!navigator.mediaDevices || !window.MediaRecorder) {
      const why = window.isSecureContext
        ? "This browser cannot record videos. Drop a video instead."
        : "Browsers give the camera only to pages of the same computer and to encrypted addresses. " +
          "Open this page on the computer that serves it, or drop a video instead.";
      return say(why, true);
    }
    find("#camera-start").disabled = true;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: true, audio: false });
      const kinds = ["video/mp4;codecs=avc1.42E01E", "video/webm;codecs=vp8", "video/webm"];
      const kind = kinds.find((type) => MediaRecorder.isTypeSupported(type));
      recorder = new MediaRecorder(stream, kind ? { mimeType: kind } : {});
      const parts = [];
      recorder.ondataavailable = (event) => parts.push(event.data);
      recorder.onstop = () => {
        const type = recorder.mimeType.split(";")[0] || "video/webm";
        release();
        use(new File(parts, type === "video/mp4" ? "camera.mp4" : "camera.webm", { type }));
      };
      find("#camera-view").srcObject = stream;
      find("#camera-view").hidden = false;
      await find("#camera-view").play();
      recorder.start();
    } catch (error) {
      release();
      return say(REASONS[error.name] || `The camera cannot be used: ${error.message}`, true);
    }
    find("#camera-stop").disabled = false;
    find("#camera-stop").focus();
    say(`Recording. It ends by itself after ${LONGEST} seconds.`);
    const begun = Date.now();
    timer = setInterval(() => {
      if (Date.now() - begun > 1000 * LONGEST) stop();
    }, 250);
  };

  const stop = () => {
    if (recorder && recorder.state !== "inactive") recorder.stop();
  };

  // Gives the recording to the field for videos, as if it had been dropped there.
  const use = async (file) => {
    say("The recording is sent.");
    for (let tries = 0; tries < 50; tries++) {
      const input = find("#video input[type=file]");
      if (input) {
        const data = new DataTransfer();
        data.items.add(file);
        input.files = data.files;
        input.dispatchEvent(new Event("change", { bubbles: true }));
        find("#camera-start").focus();
        return say(`Recorded ${(file.size / 1e6).toFixed(1)} MB.`);
      }
      const clear = find('#video button[aria-label="Clear"]');
      if (clear && tries % 10 === 0) clear.click();
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    say("The recording could not be handed to the page. Reload the page, and record again.", true);
  };
}

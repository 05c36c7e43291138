// The page: photos in, canvases out. All computation is in worker.js, so that the page stays alive.
const $ = (id) => document.getElementById(id);
const LARGEST_SIDE = 16384, LARGEST_AREA = 120e6; // of a canvas that browsers still draw

const models = await (await fetch("models.json")).json();
for (const model of models) $("model").add(new Option(`${model.name} (x${model.scale})`, model.name));

let worker = null, shown = null; // shown: the photo that was taken last

function say(text, isError = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", isError);
}

function stop() {
  worker?.terminate();
  worker = null;
  $("stop").disabled = true;
  $("progress").hidden = true;
}

async function take(source, name) {
  stop();
  say(`reading ${name} ...`);
  try {
    const image = await createImageBitmap(source); // turned as its EXIF orientation says
    shown = { image, name };
    upscale();
  } catch {
    say(`${name}: not an image that this browser reads.`, true);
  }
}

function upscale() {
  stop();
  const { image, name } = shown, model = models.find((one) => one.name === $("model").value);
  const { width, height } = image, outWidth = width * model.scale, outHeight = height * model.scale;
  if (Math.max(outWidth, outHeight) > LARGEST_SIDE || outWidth * outHeight > LARGEST_AREA) {
    return say(`${name}: ${outWidth} x ${outHeight} pixels would be more than a browser draws; take a smaller photo.`, true);
  }
  if (Math.min(width, height) < model.smallest) {
    return say(`${name}: ${width} x ${height} pixels; at least ${model.smallest} are needed to each side.`, true);
  }
  const reader = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  reader.fillStyle = "white"; // behind what is transparent
  reader.fillRect(0, 0, width, height);
  reader.drawImage(image, 0, 0);
  const rgba = reader.getImageData(0, 0, width, height).data.buffer;
  for (const id of ["sr", "bicubic"]) Object.assign($(id), { width: outWidth, height: outHeight });
  const sr = $("sr").getContext("2d"), bicubic = $("bicubic").getContext("2d");
  $("result").hidden = $("progress").hidden = false;
  $("name").textContent = model.name;
  $("save").disabled = true;
  $("stop").disabled = false;
  $("progress").value = 0;
  document.body.dataset.state = "busy";
  say(`${name}, ${width} x ${height} pixels: loading the network ...`);
  worker = new Worker("worker.js", { type: "module" });
  worker.onerror = (event) => fail(name, event.message || "the worker could not be started");
  worker.onmessage = ({ data }) => {
    if (data.error) return fail(name, data.error);
    if (data.done) {
      const speed = (outWidth * outHeight) / 1e3 / data.milliseconds;
      say(`${name}: ${width} x ${height} to ${outWidth} x ${outHeight} in ${(data.milliseconds / 1e3).toFixed(2)} s, `
        + `${speed.toFixed(2)} megapixels/s (${data.provider}).`);
      stop();
      $("save").disabled = false;
      document.body.dataset.state = "done";
      return;
    }
    sr.putImageData(new ImageData(new Uint8ClampedArray(data.sr), data.width), data.x, data.y);
    bicubic.putImageData(new ImageData(new Uint8ClampedArray(data.bicubic), data.width), data.x, data.y);
    $("progress").value = data.part;
    say(`${name}: ${Math.round(100 * data.part)} % (${data.provider})`);
  };
  worker.postMessage({ model, width, height, rgba, only: new URLSearchParams(location.search).get("provider") }, [rgba]);
}

function fail(name, reason) {
  stop();
  document.body.dataset.state = "failed";
  say(`${name}: ${reason}`, true);
}

$("file").onchange = (event) => event.target.files[0] && take(event.target.files[0], event.target.files[0].name);
$("sample").onclick = async () => take(await (await fetch("sample.png")).blob(), "the sample");
$("model").onchange = () => shown && upscale();
$("stop").onclick = () => { stop(); say("stopped."); };
$("slider").oninput = (event) => $("stage").style.setProperty("--split", `${event.target.value}%`);
$("pixels").onchange = (event) => $("stage").classList.toggle("pixels", event.target.checked);
$("stage").onpointermove = (event) => {
  if (event.pointerType === "mouse" && !event.buttons) return;
  const box = $("stage").getBoundingClientRect();
  $("slider").value = (100 * (event.clientX - box.left)) / box.width;
  $("slider").oninput({ target: $("slider") });
};
$("save").onclick = () => $("sr").toBlob((blob) => {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: "upscaled.png" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    const file = kind === "drop" && event.dataTransfer.files[0];
    if (file) take(file, file.name);
  });
}
if (location.protocol !== "file:") say("");
document.body.dataset.state = "ready";

// GPUs that no worker has, or that no worker gets any more, and why.

import { byId, fromTemplate, setText } from "./dom.js";
import { use } from "./format.js";

// Shows those of one answer of the pool. A quarantined one is here too while its worker still drains.
export function showGpus(gpus) {
  const idle = gpus.filter((gpu) => gpu.state !== "leased");
  const list = byId("idle-gpus");
  byId("idle").hidden = !idle.length;
  while (list.children.length > idle.length) list.lastElementChild.remove();
  while (list.children.length < idle.length) list.append(fromTemplate("gpu-template"));
  idle.forEach((gpu, i) => {
    const state = list.children[i].querySelector(".state");
    setText(state, gpu.state);
    state.dataset.state = gpu.state;
    setText(list.children[i].querySelector(".what"), describe(gpu));
  });
}

function describe(gpu) {
  const uuid = gpu.uuid.length > 16 ? `${gpu.uuid.slice(0, 12)}…` : gpu.uuid;
  return [`GPU ${gpu.index} ${uuid}`, gpu.name, ...use(gpu.use ?? {}), gpu.reason].filter(Boolean).join(" · ");
}

// Puts the parts of the page together.

import { byId } from "./dom.js";
import { forgetKey, key } from "./key.js";
import { startChat } from "./chat.js";
import { startLive } from "./live.js";
import { showModels, showModelsAlone } from "./models.js";
import { showSnippets } from "./snippets.js";

byId("forget-key").hidden = !key();
byId("forget-key").addEventListener("click", forgetKey);
byId("model").addEventListener("change", showSnippets);

showSnippets();
startChat();
startLive(
  (pool) => showModels(pool, showSnippets),
  () => showModelsAlone(showSnippets),
);

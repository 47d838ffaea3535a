// Everything that the official client of Ollama for JavaScript does with a server, as one JSON object on stdout.
//
//     node talk.mjs http://127.0.0.1:11434

import { Ollama } from 'ollama'

const ollama = new Ollama({ host: process.argv[2] })
const messages = [{ role: 'user', content: 'Tell me a calm story.' }]
const options = { temperature: 0, num_predict: 12 }
const prompt = { model: 'demo', prompt: 'One morning a fox', raw: true, options }
const expose_hidden = { layers: [0, 7], final: true, prompt: true, compression: 'float16', encoding: 'base64' }

async function all(parts) {
  const found = []
  for await (const part of await parts) found.push(part)
  return found
}

async function failure(call) {
  try {
    await call()
  } catch (error) {
    return { name: error.name, message: error.message, status: error.status_code ?? null }
  }
  return null
}

// Leaves an endless answer after its first parts.
async function leave() {
  const parts = await ollama.generate({ ...prompt, options: { temperature: 0, num_predict: -1 },
                                        stream: true, expose_hidden: { nodes: ['*_out-*', '*ffn*', '*_norm-*'] } })
  let n = 0
  const error = await failure(async () => {
    for await (const part of parts) {
      n += 1
      if (n == 2) parts.abort()
    }
  })
  return { n, error }
}

const said = {
  version: await ollama.version(),
  list: await ollama.list(),
  show: await ollama.show({ model: 'demo' }),
  generate: await ollama.generate(prompt),
  generateStream: await all(ollama.generate({ ...prompt, stream: true })),
  chat: await ollama.chat({ model: 'demo', messages, options }),
  chatStream: await all(ollama.chat({ model: 'demo', messages, options, stream: true })),
  hidden: await ollama.generate({ ...prompt, expose_hidden }),
  hiddenStream: await all(ollama.generate({ ...prompt, stream: true, expose_hidden })),
  hiddenChat: await ollama.chat({ model: 'demo', messages, options, expose_hidden: { last_layer_only: true } }),
  embed: await ollama.embed({ model: 'bert', input: ['a fox', 'two foxes'] }),
  embeddings: await ollama.embeddings({ model: 'bert', prompt: 'a fox' }),
  json: await ollama.generate({ ...prompt, format: 'json', options: { ...options, num_predict: 40 } }),
  aborted: await leave(),
  after: await ollama.generate(prompt),  // the server has one sequence: that it answers says that it is free again
  ps: await ollama.ps(),
  notFound: await failure(() => ollama.generate({ ...prompt, model: 'nosuch' })),
  notFoundStream: await failure(() => all(ollama.generate({ ...prompt, model: 'nosuch', stream: true }))),
  wrong: await failure(() => ollama.generate({ ...prompt, expose_hidden: { layers: [-1] } })),
  pull: await failure(() => ollama.pull({ model: 'demo' })),
  unload: await ollama.generate({ model: 'demo', prompt: '', keep_alive: 0 }),
}
console.log(JSON.stringify(said))

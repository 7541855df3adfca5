// The official provider for services, on the official SDK: prints what each flag is.
import { OpenFeature } from "@openfeature/server-sdk";
import { OFREPProvider } from "@openfeature/ofrep-provider";

const [baseUrl, token, key] = process.argv.slice(2);
await OpenFeature.setProviderAndWait(
  new OFREPProvider({ baseUrl, headers: [["Authorization", `Bearer ${token}`]] }),
);
const client = OpenFeature.getClient();
const context = { targetingKey: key };
const found = {
  object: await client.getObjectDetails("ticket-triage", {}, context),
  string: await client.getStringDetails("ticket-triage.model", "none", context),
  number: await client.getNumberDetails("ticket-triage.parameters.max_completion_tokens", -1, context),
  missing: await client.getStringDetails("nowhere", "none", context),
  mismatch: await client.getBooleanDetails("ticket-triage.model", false, context),
};
console.log(JSON.stringify(found));
await OpenFeature.close();

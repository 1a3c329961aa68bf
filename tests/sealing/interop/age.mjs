// Encrypts or decrypts one file with npm's age-encryption, which shares no code with ours.
// node age.mjs encrypt RECIPIENT IN OUT | node age.mjs decrypt IDENTITY IN OUT | node age.mjs recipient IDENTITY
import { readFileSync, writeFileSync } from "node:fs";
import { Decrypter, Encrypter, identityToRecipient } from "age-encryption";

const [action, key, source, target] = process.argv.slice(2);

switch (action) {
  case "encrypt": {
    const encrypter = new Encrypter();
    encrypter.addRecipient(key);
    writeFileSync(target, await encrypter.encrypt(readFileSync(source)));
    break;
  }
  case "decrypt": {
    const decrypter = new Decrypter();
    decrypter.addIdentity(key);
    writeFileSync(target, await decrypter.decrypt(readFileSync(source)));
    break;
  }
  case "recipient":
    console.log(await identityToRecipient(key));
    break;
  default:
    process.exit(2);
}
